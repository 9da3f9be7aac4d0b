"""What the app does without a server: its datastore of a folder under threads, and its words for errors."""

import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

N_IMAGES = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(N_IMAGES):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / f"image_{number}.png")
    return tmp_path


@pytest.mark.filterwarnings("ignore:The distutils package:DeprecationWarning")  # which MONAI Label imports
def test_the_watching_thread_survives_labels_that_are_saved_meanwhile(folder: Path) -> None:
    from aeflow_monai.label.studies.folder import AnomalyLocalDatastore

    store = AnomalyLocalDatastore(str(folder), extensions=["*.png"])
    label = folder / "image_0.png"
    errors: list[BaseException] = []
    stop = threading.Event()

    def again_and_again(call: Any) -> None:
        count = 0
        while not stop.is_set():
            try:
                call(count)
            except BaseException as error:  # a thread's would go unseen
                errors.append(error)
                return
            count += 1

    def read(count: int) -> None:
        assert len(store.list_images()) == N_IMAGES
        assert Path(store.get_image_uri(f"image_{count % N_IMAGES}")).is_file()

    def save(count: int) -> None:
        store.save_label(f"image_{count % N_IMAGES}", str(label), f"tag_{count}", {})

    threads = [
        threading.Thread(target=again_and_again, args=[call]) for call in (lambda _: store.refresh(), save, read, read)
    ]
    for thread in threads:
        thread.start()
    stop.wait(5)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert len(store.list_images()) == N_IMAGES


@pytest.mark.filterwarnings("ignore:The distutils package:DeprecationWarning")  # which MONAI Label imports
def test_a_dicomweb_server_that_does_not_answer_is_no_fault_of_this_one() -> None:
    import requests
    from fastapi import HTTPException

    from aeflow_monai.label.requests.answers import readable_errors

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(HTTPException) as raised, readable_errors():
            requests.get(f"http://127.0.0.1:{probe.getsockname()[1]}/dicom-web/series", timeout=5)
    assert raised.value.status_code == 502
    assert "does not answer as one should (ConnectionError)" in raised.value.detail

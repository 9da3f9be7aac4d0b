"""Studies and models that are not as they should be, and what a real server and its log tell of them."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from asking import CASE, OUTSIDE, ask, form, params, refused

pytestmark = pytest.mark.usefixtures("nothing_is_written")


@pytest.fixture
def studies(guarded_studies: Path) -> Path:
    return guarded_studies


@pytest.fixture
def server(guarded: Any) -> Any:
    return guarded


def test_files_of_one_name_and_of_any_case_are_listed(server: Any, studies: Path) -> None:
    names = {name: entry["image"]["info"]["name"] for name, entry in server.client.datastore()["objects"].items()}
    assert not [name for name in names if "forged" in name or "hidden" in name or not name.isprintable()]
    assert "3 files are not listed" in (server.folder / "app/logs/app.log").read_text()
    assert names["UPPER"] == "UPPER.NII.GZ"
    assert {names["twin"], names["twin.nii.gz" if names["twin"] == "twin.nii" else "twin.nii"]} == {
        "twin.nii",
        "twin.nii.gz",
    }
    second = next(name for name in names if name.startswith("twin."))
    of_second = server.client.infer("anomaly_mask", second, {})[1]["anomaly_score"]
    twin = {"twin.nii": "test_normal_000", "twin.nii.gz": CASE}[second]
    assert of_second == pytest.approx(server.client.infer("anomaly_mask", twin, {})[1]["anomaly_score"], abs=1e-6)
    upper = server.client.infer("anomaly_mask", "UPPER", {})[1]["anomaly_score"]
    assert upper == pytest.approx(server.client.infer("anomaly_mask", CASE, {})[1]["anomaly_score"], abs=1e-6)


def test_a_worklist_that_is_not_sorted_yet_says_so(server: Any, studies: Path) -> None:
    sample = server.client.next_sample("most_anomalous", {})
    assert sample["sorted"] is False
    assert sample["unscored"] == sample["waiting"]
    assert "not sorted yet" in sample["notice"]
    assert "path" not in sample
    assert sample["checksum"].startswith("SHA256:")


def test_garbage_in_the_model_folder_and_by_the_port_disables_nothing(server: Any, studies: Path) -> None:
    garbage = form(("file", "model.pt", os.urandom(1000)))
    assert "does not know its preprocessing" in refused(ask(server, "PUT", "/model/anomaly_mask", **garbage), 400)
    info = server.client.info()
    version = info["models"]["anomaly_mask"]["version"]
    assert info["train_stats"]["anomaly"]["model_version"] == int(version) == 10  # after the garbage
    assert server.client.infer("anomaly_mask", "picture", {})[1]["model_version"] == 10
    newer = server.folder / "app/model/v11"
    shutil.copytree(server.folder / "app/model/v10", newer)
    (newer / "models/model.pt").write_bytes(os.urandom(1000))
    assert server.client.infer("anomaly_mask", "picture", {})[1]["model_version"] == 10


def test_one_goes_back_to_an_older_version_by_renaming_the_newest(server: Any) -> None:
    newest = server.folder / "app/model/v12"
    shutil.copytree(server.folder / "app/model/v10", newest)
    assert server.client.infer("anomaly_mask", "picture", {})[1]["model_version"] == 12
    newest.rename(newest.with_name("v12.withdrawn"))
    assert server.client.infer("anomaly_mask", "picture", {})[1]["model_version"] == 10
    newest.with_name("v12.withdrawn").rename(newest)
    assert server.client.infer("anomaly_mask", "picture", {})[1]["model_version"] == 12


def test_an_image_that_vanishes_after_it_was_listed_is_none(server: Any, studies: Path) -> None:
    shutil.copy(studies / f"{CASE}.nii.gz", studies / "moving.nii.gz")
    end = time.monotonic() + 30
    while "moving" not in server.client.datastore()["objects"]:
        assert time.monotonic() < end
    (studies / "moving.nii.gz").unlink()  # before the folder is looked at again
    assert "There is no image 'moving'" in server.refusal("infer", "anomaly_mask", "moving", {})


def test_an_image_is_named_by_its_file_and_not_by_where_that_lies(server: Any, studies: Path) -> None:
    link = studies / "link.nii.gz"
    link.symlink_to(studies.parent / "outside/secret.nii.gz")
    end = time.monotonic() + 30
    while "link" not in server.client.datastore()["objects"]:
        assert time.monotonic() < end
    answer = ask(server, "POST", "/infer/anomaly_mask?image=link", **params())
    assert "in secret.nii.gz;" in refused(answer, 400)
    assert "outside" not in answer.text
    link.unlink()
    answer = ask(server, "POST", "/infer/anomaly_mask", **form(("file", "mine.nii.gz", b"no image")))
    assert "in the upload;" in refused(answer, 400)


def test_logs_have_one_line_per_inference_and_no_file_names(server: Any, studies: Path) -> None:
    log = server.folder / "app/logs/app.log"
    before = len(log.read_text().splitlines())
    server.client.infer("anomaly_mask", CASE, {})
    server.refusal("infer", "anomaly_mask", "broken", {})
    lines = log.read_text().splitlines()[before:]
    assert len(lines) == 2, lines
    assert "anomaly_mask answered in" in lines[0]
    for file in (log, server.log):
        text = file.read_text()
        for name in (CASE, "broken", "picture", "UPPER", "twin", OUTSIDE):
            assert name not in text
        assert not [line for line in text.splitlines() if line.startswith("INFO forged")]

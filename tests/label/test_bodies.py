"""What requests carry: uploads, sessions, options and JSON, refused by name where they are wrong."""

from __future__ import annotations

import http.client
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import CASE, MEGABYTES, NAMES, OUTSIDE, Answer, as_json, ask, form, gzip_of_zeros, image_of, params, refused
from PIL import Image

pytestmark = pytest.mark.usefixtures("nothing_is_written")


@pytest.fixture
def studies(guarded_studies: Path) -> Path:
    return guarded_studies


@pytest.fixture
def server(guarded: Any) -> Any:
    return guarded


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("/etc/passwd", "a/b")], ids=ascii)
def test_an_upload_of_a_wrong_name_is_refused(server: Any, studies: Path, name: str) -> None:
    if any(char in name for char in "\r\n"):
        pytest.skip("which no header can have")
    for field, method, path in (
        ("file", "POST", "/infer/anomaly_mask"),
        ("file", "PUT", "/datastore/image?image=new"),
        ("label", "PUT", f"/datastore/label?image={CASE}"),
        ("files", "PUT", "/session/"),
    ):
        refused(ask(server, method, path, **form((field, f"{name}.sh", image_of(studies)))))
        if name != "..\\..\\secret" and not name.startswith("x"):
            refused(ask(server, method, path, **form((field, f"{name}/../../x.nii.gz", image_of(studies)))))


def test_what_slicer_uploads_is_named_by_its_whole_path(server: Any, studies: Path) -> None:
    content = form(("params", None, b"{}"), ("label", f"/home/reader/{CASE}.nii.gz", gzip_of_zeros(studies)))
    assert ask(server, "PUT", f"/datastore/label?image={CASE}&tag=final", **content).status == 200
    assert ask(server, "DELETE", f"/datastore/label?id={CASE}&tag=final").status == 200
    refused(ask(server, "DELETE", f"/datastore/label?id={CASE}&tag=final"), 404)


@pytest.mark.parametrize(
    "options",
    [
        {"image": "/etc/passwd"},
        {"bundle_path": "/tmp"},
        {"treshold": 3},
        {"threshold": [1]},
        {"model": "anomaly_map/.."},
        {"device": {"a": 1}},
        {"client_id": "a\nINFO forged"},
        {"client_id": "x" * 5000},
        {"label_info": [[[[[[[[[[]]]]]]]]]]},
        {"result_extension": "/../../x.nii"},
        {"result_dtype": ["uint8"]},
        {"session": "x"},
        {"logging": 5},
        {"logging": None},
        {"device": -1},
        {"device": True},
        {"logging": "loud"},
    ],
    ids=str,
)
def test_wrong_options_are_refused(server: Any, options: dict[str, Any]) -> None:
    refused(ask(server, "POST", f"/infer/anomaly_mask?image={CASE}", **params(**options)))
    refused(ask(server, "POST", "/batch/infer/anomaly_mask", **as_json(options)))
    if not {"threshold", "result_extension", "result_dtype", "label_info"} & set(options):
        refused(ask(server, "POST", "/train/anomaly", **as_json(options)))
        refused(ask(server, "POST", "/scoring/anomaly_score", **as_json(options)))


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"1", b'"text"', b"\xff", b"[" * 100_000, b'{"a": ' * 5000, b"null"], ids=repr
)
def test_what_is_no_json_object_is_refused(server: Any, body: bytes) -> None:
    refused(ask(server, "POST", f"/infer/anomaly_mask?image={CASE}", **form(("params", None, body))))
    refused(ask(server, "PUT", f"/datastore/image/info?image={CASE}", **form(("info", None, body))))
    for path in ("/train/anomaly", "/scoring/anomaly_score", "/batch/infer/anomaly_mask", "/activelearning/random"):
        refused(ask(server, "POST", path, body, content_type="application/json"))
        refused(ask(server, "POST", path, body, content_type="text/plain"), 415)


@pytest.mark.parametrize("entry", ["name", "path", "anomaly_score", "strategy", "marked_normal"])
def test_what_the_server_says_of_an_image_no_client_says(server: Any, entry: str) -> None:
    content = form(("info", None, json.dumps({entry: "../../.bashrc"}).encode()))
    assert "the server's own" in refused(ask(server, "PUT", f"/datastore/image/info?image={CASE}", **content), 400)
    content = form(("info", None, b'{"comment": "seen"}'))
    assert ask(server, "PUT", f"/datastore/image/info?image={CASE}", **content).status == 200


def temporary(server: Any) -> set[str]:
    return {path.name for path in (server.folder / "app/tmp").iterdir()}


def is_tidy(server: Any, before: set[str]) -> bool:
    end = time.monotonic() + 10
    while temporary(server) - before and time.monotonic() < end:
        time.sleep(0.1)
    return not temporary(server) - before


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_number_that_no_answer_could_hold_is_not_kept(server: Any, number: str) -> None:
    content = ('{"comment": [' + number + "]}").encode()
    for path in ("image/info?image=", "label/info?tag=final&label=", "image?image=new"):
        refused(ask(server, "PUT", f"/datastore/{path}{CASE}", **form(("info", None, content))), 400)
        refused(ask(server, "PUT", f"/datastore/{path}{CASE}", **form(("params", None, content))), 400)
    assert CASE in server.get("/datastore/?output=all")["objects"]


def test_a_request_has_one_file_that_the_server_reads(server: Any, studies: Path) -> None:
    two = form(("file", "a.nii.gz", image_of(studies)), ("file", "b.nii.gz", image_of(studies)))
    assert "one file; got 2" in refused(ask(server, "POST", "/infer/anomaly_mask", **two), 400)
    slices = form(("files", "a.dcm", b"one"), ("files", "b.dcm", b"two"))
    assert "Convert the file" in refused(ask(server, "PUT", "/session/", **slices), 400)


def test_an_upload_has_a_limit_and_is_cleaned_up(server: Any, studies: Path) -> None:
    before = temporary(server)
    large = form(("file", "large.nii.gz", os.urandom(MEGABYTES * 10**6)))
    for method, path in (("POST", "/infer/anomaly_mask"), ("PUT", "/datastore/image?image=large")):
        assert "--max-upload-mb" in refused(ask(server, method, path, **large), 413)
    refused(
        ask(server, "POST", "/train/anomaly", body=b"{" + b" " * 2**20 + b"}", content_type="application/json"), 413
    )
    # of a size that is not said before
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    chunks = (bytes(10**5) for _ in range(MEGABYTES * 11))
    headers = {"content-type": large["content_type"]}
    try:
        connection.request("PUT", "/session/", chunks, headers, encode_chunked=True)
        refused(Answer(connection.getresponse()), 413)
    except ConnectionError:
        pass  # it did not wait for the rest
    connection.close()
    for name, content in (("broken.nii.gz", b"no image"), ("broken.png", b""), ("broken.nrrd", OUTSIDE.encode())):
        said = refused(ask(server, "POST", "/infer/anomaly_mask", **form(("file", name, content))), 400)
        assert OUTSIDE[:8] not in said
    refused(ask(server, "PUT", f"/datastore/label?image={CASE}", **form(("label", "a.nii.gz", b"no label"))), 400)
    refused(ask(server, "PUT", f"/datastore/image?image={CASE}", **form(("file", "a.nii.gz", image_of(studies)))), 409)
    refused(ask(server, "PUT", "/datastore/image?image=new", **form(("file", "a.sh", b"#!/bin/sh"))), 400)
    assert ask(server, "POST", "/infer/anomaly_mask", **form(("file", "a.nii.gz", image_of(studies)))).status == 200
    assert is_tidy(server, before), temporary(server) - before


def test_sessions_are_those_that_the_server_gave(server: Any, studies: Path) -> None:
    before = temporary(server)
    sessions = server.folder / "app/sessions"
    assert [*sessions.iterdir()] == []  # what was no session is gone
    answer = ask(server, "PUT", "/session/", **form(("files", "scan.nii.gz", image_of(studies))))
    assert answer.status == 200
    assert str(server.folder) not in answer.text
    session = json.loads(answer.text)["session_id"]
    assert [path.name for path in sessions.iterdir()] == [session]
    assert ask(server, "POST", f"/infer/anomaly_mask?session_id={session}", **params()).status == 200
    assert ask(server, "GET", f"/session/{session}?image=true").status == 200
    assert ask(server, "DELETE", f"/session/{session}").status == 200
    assert [*sessions.iterdir()] == []
    refused(ask(server, "GET", f"/session/{session}"), 404)
    for name in ("meta.info", "..", "a/scan.nii.gz", "run.sh"):
        refused(ask(server, "PUT", "/session/", **form(("files", name, image_of(studies)))), 400)
    twice = form(*[("files", "scan.nii.gz", image_of(studies))] * 2)
    assert "one file; got 2" in refused(ask(server, "PUT", "/session/", **twice), 400)
    archive = ask(server, "PUT", "/session/?uncompress=true", **form(("files", "scan.nii.gz", image_of(studies))))
    assert "not unpacked" in refused(archive, 400)
    assert is_tidy(server, before), temporary(server) - before


def test_pictures_are_uploaded_as_images_of_the_studies(server: Any, studies: Path, tmp_path: Path) -> None:
    Image.open(studies / "picture.png").save(tmp_path / "new.png")
    assert server.client.upload_image(str(tmp_path / "new.png"), "uploaded") == {"image": "uploaded"}
    assert (studies / "uploaded.png").read_bytes() == (tmp_path / "new.png").read_bytes()
    assert server.client.infer("anomaly_mask", "uploaded", {})[1]["anomaly_score"]
    label = np.zeros_like(np.asarray(Image.open(tmp_path / "new.png")))
    Image.fromarray(label).save(tmp_path / "label.png")
    server.client.save_label("uploaded", str(tmp_path / "label.png"), tag="final")
    assert (studies / "labels/final/uploaded.png").is_file()
    (studies / "uploaded.png").unlink()

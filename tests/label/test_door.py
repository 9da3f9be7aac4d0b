"""What a stranger on the port, or a web page in a reader's browser, can do with a real server: nothing."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
from outputs import contents
from PIL import Image

from aeflow_monai.cli.main import main

CASE = "test_abnormal_000"
ORIGIN = "https://reading.example.org"
MEGABYTES = 4
OUTSIDE = "words of a file that is no image"
# Names that lead elsewhere, forge lines of a log, or are too long for a file.
NAMES = (
    "../../outside/secret",
    "..",
    "/etc/passwd",
    "..\\..\\secret",
    "a/b",
    "a\x00b",
    "a\nINFO forged",
    "a\r\nINFO forged",
    "a\u2028forged",
    "\u202egnp.case",
    "x" * 5000,
    ".hidden",
    " ",
)


@pytest.fixture(scope="module")
def studies(make_studies: Callable[[], Path]) -> Path:
    folder = make_studies()
    (folder.parent / "outside").mkdir(exist_ok=True)
    (folder.parent / "outside/secret.nii.gz").write_text(OUTSIDE)
    shutil.copy(folder / f"{CASE}.nii.gz", folder / "UPPER.NII.GZ")
    for name in ("a\nINFO forged.png", os.fsdecode(b"\xff.png"), ".hidden.png"):
        shutil.copy(folder / "picture.png", folder / name)
    shutil.copy(folder / f"{CASE}.nii.gz", folder / "twin.nii.gz")
    nib.save(nib.load(folder / "test_normal_000.nii.gz"), folder / "twin.nii")
    return folder


@pytest.fixture(scope="module")
def server(studies: Path, make_server: Callable[..., Any]) -> Iterator[Any]:
    options = ("--origin", ORIGIN, "--max-upload-mb", str(MEGABYTES))
    server = make_server(studies, *options, MONAI_LABEL_AUTO_UPDATE_SCORING="false")
    server.folder.joinpath("app/model/v7").mkdir(parents=True)  # garbage that is there before the start
    for garbage in ("app/model/v7/models", "app/model/v8/models", "app/sessions/garbage"):
        server.folder.joinpath(garbage).mkdir(parents=True)
    for file in ("v7/models/model.pt", "model.pt", "v9", "train_stats.json", "evaluation.json"):
        server.folder.joinpath("app/model", file).write_bytes(b"garbage")
    server.start()
    yield server
    server.close()


class Answer:
    """Of a server, whatever it is."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.text = answer.read().decode("latin-1")

    @property
    def detail(self) -> str:
        return str(json.loads(self.text)["detail"])


def ask(server: Any, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="host" in headers)
    if body is not None:
        named.setdefault("content-length", str(len(body)))
    for name, value in named.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    try:
        return Answer(connection.getresponse())
    finally:
        connection.close()


def form(*parts: tuple[str, str | None, bytes]) -> dict[str, Any]:
    """A form of fields and files, with the headers that say so."""
    lines = b""
    for name, file, content in parts:
        of_file = b"" if file is None else b'; filename="' + file.encode() + b'"'
        lines += b'--frame\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + of_file
        lines += b"\r\n\r\n" + content + b"\r\n"
    return {"body": lines + b"--frame--\r\n", "content_type": "multipart/form-data; boundary=frame"}


def as_json(content: Any) -> dict[str, Any]:
    return {"body": json.dumps(content).encode(), "content_type": "application/json"}


def params(**options: Any) -> dict[str, Any]:
    return form(("params", None, json.dumps(options).encode()))


def image_of(studies: Path, name: str = CASE) -> bytes:
    return (studies / f"{name}.nii.gz").read_bytes()


def refused(answer: Answer, *statuses: int) -> str:
    """What a request was refused with, which has to be a reason, and no bytes of a file or path of the server."""
    assert answer.status in (statuses or range(400, 500)), (answer.status, answer.text)
    assert len(answer.text) < 5000
    for secret in (OUTSIDE, "root:", "/tmp/", str(Path.home()) + "/", "Traceback"):
        assert secret not in answer.text
    assert answer.detail
    return answer.detail


@pytest.fixture(autouse=True)
def nothing_is_written(request: pytest.FixtureRequest, server: Any, studies: Path) -> Iterator[None]:
    """Whatever a test of this file asks for, all that lies outside of the studies and the app stays as it is."""
    outside = studies.parent / "outside"
    before = contents(outside)
    yield
    assert contents(outside) == before
    assert (server.folder / "app/main.py").is_file()
    assert server.ask("/info/")[0] == 200  # it lives on


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_leads_elsewhere(server: Any, studies: Path, name: str) -> None:
    label = ("label", "label.nii.gz", image_of(studies))
    word = quote(name, safe="")
    for method, path, content in (
        ("POST", f"/infer/anomaly_mask?image={word}", params()),
        ("POST", f"/infer/{word}?image={CASE}", params()),
        ("POST", f"/infer/anomaly_mask?image={CASE}", params(label_tag=name, save_label=True)),
        ("POST", f"/infer/anomaly_mask?image={CASE}", params(image=name)),
        ("POST", f"/infer/anomaly_mask?session_id={word}", params()),
        ("PUT", f"/datastore/image?image={word}", form(("file", "new.nii.gz", image_of(studies)))),
        ("PUT", f"/datastore/?image={word}", form(("file", "new.nii.gz", image_of(studies)))),
        ("PUT", f"/datastore/label?image={word}", form(label)),
        ("PUT", f"/datastore/label?image={CASE}&tag={word}", form(label)),
        ("PUT", f"/datastore/label/info?label={word}&tag=final", form(("info", None, b"{}"))),
        ("PUT", f"/datastore/image/info?image={word}", form(("info", None, b"{}"))),
        ("GET", f"/datastore/label?label={CASE}&tag={word}", {}),
        ("GET", f"/datastore/label?label={word}&tag=final", {}),
        ("GET", f"/datastore/image?image={word}", {}),
        ("GET", f"/datastore/image/info?image={word}", {}),
        ("DELETE", f"/datastore/label?id={word}&tag=final", {}),
        ("DELETE", f"/datastore/label?id={CASE}&tag={word}", {}),
        ("GET", f"/session/{word}", {}),
        ("DELETE", f"/session/{word}", {}),
        ("GET", f"/model/{word}", {}),
        ("POST", f"/activelearning/{word}", as_json({})),
        ("POST", "/activelearning/most_anomalous", as_json({"label_tag": name})),
        ("POST", f"/train/{word}", as_json({})),
        ("POST", f"/scoring/{word}", as_json({})),
        ("POST", "/batch/infer/anomaly_mask", as_json({"images": [name]})),
        ("POST", "/batch/infer/anomaly_mask", as_json({"label_tag": name})),
        ("GET", f"/ohif/{word}", {}),
        ("GET", f"/static/{word}", {}),
        ("GET", f"/proxy/dicom/wado/{word}", {}),
    ):
        if name == "a/b" and path.startswith("/ohif/"):
            continue  # which OHIF's index answers, as any page of OHIF's own
        refused(ask(server, method, path, **content))


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


def gzip_of_zeros(studies: Path, name: str = CASE, value: float = 0, dtype: Any = np.uint8, grow: int = 0) -> bytes:
    source = nib.load(studies / f"{name}.nii.gz")
    shape = (source.shape[0] + grow, *source.shape[1:])
    return gzip.compress(nib.Nifti1Image(np.full(shape, value, dtype), source.affine).to_bytes())


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("POST", "/reload", 403, "Restart the server"),
        ("GET", "/logs/", 403, "on the server's machine"),
        ("GET", "/logs/gpu", 403, "on the server's machine"),
        ("DELETE", f"/datastore/image?id={CASE}", 403, "Take its file"),
        ("DELETE", f"/datastore/?id={CASE}", 403, "Take its file"),
        ("GET", "/datastore/dataset", 403, "Copy their folder"),
        ("DELETE", "/model/anomaly_mask", 403, "go back to an older version"),
        ("PUT", "/model/anomaly_mask", 400, "start the server with --model"),
        ("POST", "/infer/wsi/anomaly_mask", 403, "whole-slide"),
        ("POST", "/infer/wsi_v2/anomaly_mask", 403, "whole-slide"),
        ("GET", "/proxy/dicom/qido/studies", 404, "no DICOMweb server"),
        ("POST", "/proxy/dicom/wado/studies", 403, "Send it there"),
        ("GET", "/proxy/dicom/wado/../../tools/execute-script", 404, "nothing at"),
        ("GET", "/infer/anomaly_mask", 405, "POST"),
        ("TRACE", "/info/", 405, "GET"),
        ("GET", "/nowhere", 404, "nothing at '/nowhere'"),
        ("GET", "/ohif/assets", 404, "nothing at"),
        ("POST", f"/infer/anomaly_mask?image={CASE}&output=dicom_seg", 400, "DICOMweb"),
        ("POST", "/infer/anomaly_mask", 400, "image"),
        ("POST", "/scoring/anomaly_score?run_sync=true", 400, "background"),
        ("HEAD", "/info/", 405, ""),
        ("HEAD", f"/datastore/image?image={CASE}&check_sum=MD4:1", 400, ""),
        ("GET", "/datastore/image?image=absent", 404, "'absent'"),
        ("GET", "/session/00000000-0000-0000-0000-000000000000", 404, "Not Found"),
        ("GET", "/datastore/?output=nothing", 422, ""),
    ],
)
def test_what_is_not_offered_is_refused_with_what_to_do(
    server: Any, method: str, path: str, status: int, word: str
) -> None:
    answer = ask(server, method, path)
    assert answer.status == status, answer.text
    assert word in (answer.text if status == 422 or method == "HEAD" else refused(answer))


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
    ],
    ids=str,
)
def test_wrong_options_are_refused(server: Any, options: dict[str, Any]) -> None:
    refused(ask(server, "POST", f"/infer/anomaly_mask?image={CASE}", **params(**options)))
    refused(ask(server, "POST", "/batch/infer/anomaly_mask", **as_json(options)))
    if not {"threshold", "result_extension", "result_dtype", "label_info"} & set(options):
        refused(ask(server, "POST", "/train/anomaly", **as_json(options)))
        refused(ask(server, "POST", "/scoring/anomaly_score", **as_json(options)))


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b'"text"', b"\xff", b"[" * 100_000, b'{"a": ' * 5000], ids=repr)
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


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1"])
def test_no_foreign_web_page_is_answered(server: Any, method: str, origin: str) -> None:
    path = {"PUT": f"/datastore/label?image={CASE}", "DELETE": "/train/"}.get(method, "/info/")
    path = "/scoring/anomaly_score" if method == "POST" else path
    answer = ask(server, method, path, origin=origin, access_control_request_method="PUT")
    assert answer.status in ((403,) if method != "OPTIONS" else (400, 403))
    assert "access-control-allow-origin" not in answer.headers
    assert server.ask("/scoring/")[0] == 404  # nothing began


def test_pages_of_the_server_and_of_an_origin_that_it_was_told_are_answered(server: Any) -> None:
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server, "POST", "/activelearning/random", **as_json({}), origin=own).status == 200
    told = ask(server, "GET", "/info/", origin=ORIGIN)
    assert (told.status, told.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert ask(server, "GET", "/info/", host="reading.example.org", origin=ORIGIN).status == 200
    preflight = ask(server, "OPTIONS", "/infer/anomaly_mask", origin=ORIGIN, access_control_request_method="POST")
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, ORIGIN)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{}", "127.0.0.1:1", "localhost:{}@evil.example", "", "[x"]
)
def test_a_name_that_leads_to_this_machine_is_not_its_own(server: Any, host: str) -> None:
    for method, path in (("GET", "/info/"), ("POST", "/scoring/anomaly_score"), ("GET", "/datastore/image")):
        answer = ask(server, method, path, host=host.format(server.port))
        assert answer.status in (400, 403), answer.text
    for known in ("localhost", "127.0.0.1", "[::1]"):
        assert ask(server, "GET", "/info/", host=f"{known}:{server.port}").status == 200


def test_a_page_of_another_site_is_refused_without_an_origin_too(server: Any) -> None:
    refused(ask(server, "DELETE", "/train/", sec_fetch_site="cross-site"), 403)
    assert ask(server, "GET", "/ohif/", sec_fetch_site="cross-site").status == 200  # a link that a reader follows


def temporary(server: Any) -> set[str]:
    return {path.name for path in (server.folder / "app/tmp").iterdir() if path.name != "inductor"}


def is_tidy(server: Any, before: set[str]) -> bool:
    end = time.monotonic() + 10
    while temporary(server) - before and time.monotonic() < end:
        time.sleep(0.1)
    return not temporary(server) - before


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
    assert "different names" in refused(ask(server, "PUT", "/session/", **twice), 400)
    archive = ask(server, "PUT", "/session/?uncompress=true", **form(("files", "scan.nii.gz", image_of(studies))))
    assert "not unpacked" in refused(archive, 400)
    assert is_tidy(server, before), temporary(server) - before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grow": 1}, "of its image's shape"),
        ({"value": 0.5, "dtype": np.float32}, "whole numbers from 0"),
        ({"value": np.nan, "dtype": np.float32}, "whole numbers from 0"),
        ({"value": -1, "dtype": np.int16}, "whole numbers from 0"),
        ({"value": 300, "dtype": np.int16}, "whole numbers from 0"),
    ],
    ids=str,
)
def test_a_label_is_checked_when_it_is_submitted(
    server: Any, studies: Path, changes: dict[str, Any], words: str
) -> None:
    stored = contents(studies / "labels")
    content = gzip_of_zeros(studies, **changes)
    answer = ask(server, "PUT", f"/datastore/label?image={CASE}", **form(("label", "a.nii.gz", content)))
    assert words in refused(answer, 400)
    assert contents(studies / "labels") == stored
    assert CASE not in str(server.get("/datastore/?output=train"))


def test_a_label_that_cannot_be_read_or_compared_is_refused(server: Any, studies: Path) -> None:
    stored = contents(studies / "labels")
    whole = gzip_of_zeros(studies)
    for content in (b"", b"no label", whole[: len(whole) // 2]):
        answer = ask(server, "PUT", f"/datastore/label?image={CASE}", **form(("label", "a.nii.gz", content)))
        assert "the label cannot be read" in refused(answer, 400)
    answer = ask(server, "PUT", "/datastore/label?image=broken", **form(("label", "a.nii.gz", whole)))
    assert "the image cannot be read" in refused(answer, 400)
    moved = nib.load(studies / f"{CASE}.nii.gz")
    elsewhere = nib.Nifti1Image(np.zeros(moved.shape, np.uint8), moved.affine @ np.diag([-1, 1, 1, 1]))
    content = gzip.compress(elsewhere.to_bytes())
    answer = ask(server, "PUT", f"/datastore/label?image={CASE}", **form(("label", "a.nii.gz", content)))
    assert "lies where its image does" in refused(answer, 400)
    assert contents(studies / "labels") == stored


def test_a_label_with_its_axes_in_another_order_is_its_images(server: Any, studies: Path) -> None:
    source = nib.load(studies / f"{CASE}.nii.gz")
    label = nib.Nifti1Image(np.zeros(source.shape, np.uint8), source.affine)
    turned = gzip.compress(label.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]])).to_bytes())
    answer = ask(server, "PUT", f"/datastore/label?image={CASE}", **form(("label", "a.nii.gz", turned)))
    assert answer.status == 200, answer.text
    assert ask(server, "DELETE", f"/datastore/label?id={CASE}&tag=final").status == 200


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


def test_a_server_that_others_reach_needs_a_password_or_a_word(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["label", "--studies", str(studies), "--app", str(tmp_path)]
    for options, words in (
        (("--host", "0.0.0.0"), ("--allow-anyone", "docs/monai_label.md")),
        (("--host", "192.168.0.7"), ("--allow-anyone",)),
        (("--origin", "reading"), ("'reading'", "Correct --origin")),
        (("--max-upload-mb", "0"), ("--max-upload-mb",)),
    ):
        assert main([*command, *options]) == 2
        said = capsys.readouterr().err
        for word in words:
            assert word in said
    assert [*tmp_path.iterdir()] == []


def test_other_machines_are_answered_only_where_a_word_allows_it(server: Any) -> None:
    """Also of `monailabel start_server`, which listens to all of them."""
    from aeflow_monai.label.door import check_addresses
    from aeflow_monai.label.routes import NotOffered
    from aeflow_monai.label.rules import Rules

    rules = Rules((), False, 0, (), (), lambda name: True)
    headers = [(b"host", b"192.168.0.7:8000")]
    scope = {"type": "http", "method": "GET", "server": ("192.168.0.7", 8000), "headers": headers}
    with pytest.raises(NotOffered, match="--allow-anyone"):
        check_addresses(scope, rules)
    check_addresses(scope, rules._replace(allow_anyone=True))
    with pytest.raises(NotOffered, match="not known as 'evil"):
        check_addresses({**scope, "headers": [(b"host", b"evil.example")]}, rules._replace(allow_anyone=True))


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


def test_what_is_not_http_is_refused_and_the_server_lives_on(server: Any) -> None:
    for words in (b"GET /info/ HTTP/1.1\r\n\r\n", b"\x16\x03\x01garbage\r\n\r\n", b"GET http://evil/ HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(words)
            assert connection.recv(100).startswith(b"HTTP/1.1 4")

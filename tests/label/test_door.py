"""What a stranger on the port, or a web page in a reader's browser, can do with a real server: nothing."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from asking import CASE, NAMES, ORIGIN, as_json, ask, form, image_of, params, refused

from aeflow_monai.cli.main import main

pytestmark = pytest.mark.usefixtures("nothing_is_written")


@pytest.fixture
def studies(guarded_studies: Path) -> Path:
    return guarded_studies


@pytest.fixture
def server(guarded: Any) -> Any:
    return guarded


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


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/", 403, "scripts of another site"),
        ("GET", "/docs", 403, "/ohif/"),
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


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1"])
def test_no_foreign_web_page_is_answered(server: Any, method: str, origin: str) -> None:
    before = server.ask("/scoring/")
    path = {"PUT": f"/datastore/label?image={CASE}", "DELETE": "/train/"}.get(method, "/info/")
    path = "/scoring/anomaly_score" if method == "POST" else path
    answer = ask(server, method, path, origin=origin, access_control_request_method="PUT")
    assert answer.status in ((403,) if method != "OPTIONS" else (400, 403))
    assert "access-control-allow-origin" not in answer.headers
    assert server.ask("/scoring/") == before  # nothing began


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
    from aeflow_monai.label.requests.callers import check_caller
    from aeflow_monai.label.requests.routes import NotOffered
    from aeflow_monai.label.requests.rules import Rules

    rules = Rules((), False, 0, (), (), lambda name: True)
    headers = [(b"host", b"192.168.0.7:8000")]
    scope = {"type": "http", "method": "GET", "server": ("192.168.0.7", 8000), "headers": headers}
    with pytest.raises(NotOffered, match="--allow-anyone"):
        check_caller(scope, rules)
    check_caller(scope, rules._replace(allow_anyone=True))
    with pytest.raises(NotOffered, match="not known as 'evil"):
        check_caller({**scope, "headers": [(b"host", b"evil.example")]}, rules._replace(allow_anyone=True))


def test_a_request_of_two_lengths_is_refused_with_what_follows_it(server: Any) -> None:
    """A proxy that goes by the one would take for a body what the server takes for another request, or the reverse."""
    host = f"Host: 127.0.0.1:{server.port}\r\n"
    hidden = f"0\r\n\r\nGET /info/ HTTP/1.1\r\n{host}\r\n"
    words = f"POST /train/ HTTP/1.1\r\n{host}Content-Type: application/json\r\nContent-Length: {len(hidden)}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"{words}Transfer-Encoding: chunked\r\n\r\n{hidden}".encode())
        answer = b""
        while part := connection.recv(2**16):  # until the server ends the connection
            answer += part
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


def test_what_is_not_http_is_refused_and_the_server_lives_on(server: Any) -> None:
    for words in (b"GET /info/ HTTP/1.1\r\n\r\n", b"\x16\x03\x01garbage\r\n\r\n", b"GET http://evil/ HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(words)
            assert connection.recv(100).startswith(b"HTTP/1.1 4")


def test_a_status_of_a_task_does_not_say_where_the_model_lay(server: Any, trained: Path) -> None:
    """The process of a task prints at its start what the server was told."""
    server.get("/scoring/anomaly_score", "POST", {})
    end = time.monotonic() + 120
    while "Initializing App" not in str(status := server.get("/scoring/")):
        assert time.monotonic() < end
        assert status["status"] in ("SUBMITTED", "RUNNING")
        time.sleep(0.05)
    server.get("/scoring/", "DELETE")
    assert str(trained.parent) not in str(status)

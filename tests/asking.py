"""Requests as anybody may send them to a server, and what it has to answer where it refuses."""

from __future__ import annotations

import gzip
import http.client
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

CASE = "test_abnormal_000"
ORIGIN = "https://reading.example.org"  # that the guarded server was told
MEGABYTES = 4  # that it takes
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


def gzip_of_zeros(studies: Path, name: str = CASE, value: float = 0, dtype: Any = np.uint8, grow: int = 0) -> bytes:
    source = nib.load(studies / f"{name}.nii.gz")
    shape = (source.shape[0] + grow, *source.shape[1:])
    return gzip.compress(nib.Nifti1Image(np.full(shape, value, dtype), source.affine).to_bytes())


def refused(answer: Answer, *statuses: int) -> str:
    """What a request was refused with, which has to be a reason, and no bytes of a file or path of the server."""
    assert answer.status in (statuses or range(400, 500)), (answer.status, answer.text)
    assert len(answer.text) < 5000
    for secret in (OUTSIDE, "root:", "/tmp/", str(Path.home()) + "/", "Traceback", "NotOffered"):
        assert secret not in answer.text
    assert answer.detail
    return answer.detail

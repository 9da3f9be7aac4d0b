"""Request bodies: read up to a limit, validated, and replayed to MONAI Label."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import IO, Any

from starlette.datastructures import Headers, UploadFile
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from aeflow_monai.label.names import check_upload_name, check_values, parse_object, quoted
from aeflow_monai.label.requests.routes import NotOffered, Route, check_query
from aeflow_monai.label.requests.rules import Rules

__all__ = ["MAX_JSON", "check_body", "check_info", "is_ambiguous", "read_body", "replay"]

MAX_JSON = 2**20
_CHUNK = 2**16
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
# Entries of an image's or label's info that the app or MONAI Label sets, never a client.
_OWN_INFO = ("name", "ts", "path", "checksum", "strategy", "marked_normal", "user")
# Options of an infer request that are given by its URL or its upload.
_OWN_OPTIONS = ("image", "label", "session")


def is_ambiguous(scope: Scope) -> bool:
    """Whether a request declares its length twice, which allows request smuggling through a proxy.

    Args:
        scope: ASGI scope of the request.
    """
    headers = Headers(scope=scope)
    return "content-length" in headers and "transfer-encoding" in headers


async def read_body(scope: Scope, receive: Receive, body: IO[bytes], limit: int) -> None:
    """Read a request's body.

    Args:
        scope: ASGI scope of the request.
        receive: ASGI receive function.
        body: file that the body is written to.
        limit: most bytes allowed.

    Raises:
        NotOffered: the body is larger.
        ValueError: the body is truncated.
    """
    length = Headers(scope=scope).get("content-length", "0")
    if not length.isdecimal() or int(length) > limit:
        raise _too_large(limit)
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ValueError("The request ended before its body did.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        body.write(chunk)
        if not message.get("more_body", False):
            return


async def check_body(scope: Scope, route: Route, path: str, body: IO[bytes], rules: Rules) -> bool:
    """Refuse a body that does not match its route.

    Args:
        scope: ASGI scope of the request.
        route: route of the request.
        path: path of the request.
        body: body as read.
        rules: rules for the requests that the server answers.

    Returns:
        Whether the body has an upload.

    Raises:
        NotOffered: the body has another content type.
        ValueError: names the fault.
    """
    kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    if not body.seek(0, os.SEEK_END):
        return False
    if route.body == "json":
        if kind != "application/json":
            raise NotOffered(415, f"Expected a body of application/json; got {quoted(kind)}.")
        body.seek(0)
        parse_object("the body", body.read())
        return False
    if kind not in _FORMS:
        raise NotOffered(415, f"Expected a body of {' or '.join(_FORMS)}; got {quoted(kind)}.")
    request = Request(scope, replay(body, _nothing))
    async with request.form(max_files=50, max_fields=50) as form:
        return _check_form(route, path, form.multi_items(), rules)


def check_info(path: str, content: Mapping[str, Any]) -> None:
    """Refuse entries of a form's JSON that only the server may set, or that MONAI Label cannot read.

    The server sets what it records of an image, and which image a request is for.

    Args:
        path: path of the request.
        content: content of the field "params" or "info".

    Raises:
        ValueError: an entry is refused, which the message names; or the labels are not described by objects.
    """
    if path.startswith("/datastore"):
        own = [key for key in content if key in _OWN_INFO or key.startswith("anomaly_")]
    else:
        own = [key for key in content if key in _OWN_OPTIONS]
    labels = content.get("label_info") or []
    if not isinstance(labels, list) or not all(isinstance(label, dict) for label in labels):
        raise ValueError(f"Expected a list of objects as label_info; got {quoted(labels)}. Correct the request.")
    if own:
        raise ValueError(f"The entry {quoted(own[0])} is the server's own. Leave it out.")


def replay(body: IO[bytes], receive: Receive) -> Receive:
    """Return an ASGI receive function that replays a body, then continues with the original one.

    Args:
        body: body as read.
        receive: the original ASGI receive function.
    """
    size, sent, is_over = body.seek(0, os.SEEK_END), 0, False

    async def again() -> Message:
        nonlocal sent, is_over
        if is_over:
            return await receive()
        body.seek(sent)
        chunk = body.read(_CHUNK)
        sent += len(chunk)
        is_over = sent >= size
        return {"type": "http.request", "body": chunk, "more_body": not is_over}

    return again


def _check_form(route: Route, path: str, items: list[tuple[str, UploadFile | str]], rules: Rules) -> bool:
    uploads = 0
    for field, value in items:
        if isinstance(value, UploadFile):
            if field not in route.uploads:
                raise ValueError(f"Expected no file {quoted(field)} in this request. Leave it out.")
            _check_upload(path, value.filename or "", rules)
            uploads += 1
        elif field in ("params", "info"):
            check_info(path, parse_object(field, value))
        else:
            check_query([(field, value)])
            check_values({field: value})
    if uploads > 1:
        raise ValueError(f"Expected one file; got {uploads}. Convert a series of slices to one volume, as NIfTI.")
    return uploads > 0


def _check_upload(path: str, filename: str, rules: Rules) -> None:
    name = check_upload_name(filename, rules.suffixes)
    if path.startswith("/session") and name != filename:
        raise ValueError(f"Expected the name of a file without its folder; got {quoted(filename)}.")


def _too_large(limit: int) -> NotOffered:
    return NotOffered(413, f"Expected a request of at most {limit} bytes. Send less, or start with --max-upload-mb.")


async def _nothing() -> Message:
    return {"type": "http.disconnect"}

"""The door of the server: what comes in is checked before MONAI Label sees it, what goes out names no paths."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl

from fastapi import FastAPI
from monailabel.config import settings
from starlette.datastructures import Headers, UploadFile
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aeflow_monai.label.addresses import is_known_host, is_known_origin, is_loopback
from aeflow_monai.label.answers import log_error, message_of, status_of, without_paths
from aeflow_monai.label.names import check_upload_name, check_values, parse_object, shown
from aeflow_monai.label.routes import NotOffered, Route, check_query, find_route
from aeflow_monai.label.rules import Rules

__all__ = ["Door", "check_addresses", "check_infer", "check_info", "close_door"]

_MAX_JSON = 2**20
_CHUNK = 2**16
_FOREIGN = ("cross-site", "same-site")  # of a browser's word on where a request is from
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
# What an image's or label's info has from the app or MONAI Label, and no client sets.
_OWN_INFO = ("name", "ts", "path", "checksum", "strategy", "marked_normal", "user")
# What an infer request says in its address or by its upload.
_OWN_OPTIONS = ("image", "label", "session")
# Against pages that show ours in a frame, or take an answer for a script or a picture of theirs.
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def close_door(server: FastAPI, rules: Rules) -> None:
    """Put the door before MONAI Label's routes, in place of its own CORS, which allows every page with credentials.

    Args:
        server: MONAI Label's, also if it runs already.
        rules: what it was told.
    """
    cors = Middleware(
        CORSMiddleware, allow_origins=rules.origins, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
    )
    server.user_middleware = [*([cors] if rules.origins else []), Middleware(Door, rules=rules)]
    server.middleware_stack = server.build_middleware_stack()


class Door:
    """Middleware that answers what is refused with its reason, and hands on the rest.

    Args:
        app: behind it.
        rules: what the server was told.
    """

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app = app
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exit_ = _Exit(send, scope, self.rules.folders)
        try:
            check_addresses(scope, self.rules)
            path = _path_of(scope)
            route = find_route(scope["method"], path)
            query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=50)
            self._check_names(route, scope["method"], path, query)
            with tempfile.SpooledTemporaryFile(max_size=_MAX_JSON) as body:
                uploads: list[str] = []
                if route.body:
                    await self._read(scope, receive, route, body)
                    uploads = await self._check_body(scope, route, path, body)
                check_infer(path, query, uploads, self.rules.is_remote)
                await self.app(scope, _replay(body, receive), exit_.send)
        except Exception as error:
            if exit_.has_begun:
                raise
            log_error(error)
            answer = JSONResponse({"detail": message_of(error)}, status_of(error))
            await answer(scope, receive, exit_.send)

    def _check_names(self, route: Route, method: str, path: str, query: list[tuple[str, str]]) -> None:
        check_query(query)
        check_values(dict(query))
        if path.startswith("/proxy/") and not self.rules.is_remote:
            raise NotOffered(404, "The studies are a folder, and no DICOMweb server.")
        if method == "PUT" and route.is_new and self.rules.is_remote:
            raise NotOffered(403, "The studies are a DICOMweb server's. Send the image there.")
        if path.startswith("/ohif") and _is_folder_of_ohif(path):
            raise NotOffered(404, f"There is nothing at {shown(path)}.")
        if route.is_new or self.rules.is_remote or not path.startswith("/datastore"):
            return
        for name, value in query:
            if name in ("image", "label", "id") and not self.rules.has_image(value):
                raise NotOffered(404, f"There is no image {shown(value)} among the studies.")

    async def _read(self, scope: Scope, receive: Receive, route: Route, body: IO[bytes]) -> None:
        """Read a request's body, up to the limit."""
        limit = self.rules.max_upload if route.body == "form" else _MAX_JSON
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

    async def _check_body(self, scope: Scope, route: Route, path: str, body: IO[bytes]) -> list[str]:
        """Check a body by what it is; the names of its uploads."""
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if not body.seek(0, os.SEEK_END):
            return []
        if route.body == "json":
            if kind != "application/json":
                raise NotOffered(415, f"Expected a body of application/json; got {shown(kind)}.")
            body.seek(0)
            parse_object("the body", body.read())
            return []
        if kind not in _FORMS:
            raise NotOffered(415, f"Expected a body of {' or '.join(_FORMS)}; got {shown(kind)}.")
        request = Request(scope, _replay(body, _nothing))
        async with request.form(max_files=2000, max_fields=50) as form:
            return self._check_form(route, path, form.multi_items())

    def _check_form(self, route: Route, path: str, items: list[tuple[str, UploadFile | str]]) -> list[str]:
        names: list[str] = []
        for field, value in items:
            if isinstance(value, UploadFile):
                if field not in route.uploads:
                    raise ValueError(f"Expected no file {shown(field)} in this request. Leave it out.")
                names.append(self._upload_name(path, value))
            elif field in ("params", "info"):
                check_info(path, parse_object(field, value))
            else:
                check_query([(field, value)])
                check_values({field: value})
        if len(set(names)) < len(names):
            raise ValueError("Expected files of different names; two have the same. Rename one.")
        return names

    def _upload_name(self, path: str, upload: UploadFile) -> str:
        of_session = path.startswith("/session")
        suffixes = (*self.rules.suffixes, ".dcm", "") if of_session else self.rules.suffixes
        name = check_upload_name(upload.filename or "", suffixes)
        if of_session and name != upload.filename:
            raise ValueError(f"Expected the name of a file without its folder; got {shown(upload.filename)}.")
        return name


def check_addresses(scope: Scope, rules: Rules) -> None:
    """Refuse a request of a stranger, whose machine, name of this server or web page is none that it was told.

    Args:
        scope: of the request, see ASGI.
        rules: what the server was told.

    Raises:
        NotOffered: with what to tell the server.
    """
    server = scope.get("server") or ("127.0.0.1", None)
    if server[1] is not None and not (is_loopback(server[0]) or rules.allow_anyone):
        raise NotOffered(
            403,
            "This server has no password, so it answers its own machine alone. See docs/monai_label.md for a password "
            "and TLS; or start it with --allow-anyone (of `monailabel start_server`: --conf allow_anyone true).",
        )
    headers = Headers(scope=scope)
    hosts, origins = headers.getlist("host"), headers.getlist("origin")
    if len(hosts) != 1 or not is_known_host(hosts[0], server, rules.origins):
        raise NotOffered(
            403,
            f"This server is not known as {shown(', '.join(hosts))}. Ask it by the address that it listens at, or "
            "start it with --origin <scheme>://<name>:<port>.",
        )
    if any(not is_known_origin(origin, hosts[0], rules.origins) for origin in origins):
        raise NotOffered(
            403,
            f"Web pages of {shown(', '.join(origins))} may not ask this server. If they should, start it with "
            "--origin <address of the page>.",
        )
    if not origins and scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") in _FOREIGN:
        raise NotOffered(403, "Web pages of another site may not ask this server.")


def check_infer(path: str, query: list[tuple[str, str]], uploads: list[str], is_remote: bool) -> None:
    """Refuse an infer request without an image, or for what only a DICOMweb server's images have.

    Args:
        path: of the request.
        query: names and values.
        uploads: names of files.
        is_remote: whether the studies are a DICOMweb server's.

    Raises:
        ValueError: with what is missing.
    """
    if not path.startswith("/infer/"):
        return
    if not uploads and not any(name in ("image", "session_id") and value for name, value in query):
        raise ValueError("Expected an image: name one of the studies, or a session, or upload a file.")
    if ("output", "dicom_seg") in query and (uploads or not is_remote):
        raise ValueError("DICOM SEG is for series of a DICOMweb server. Leave the output away.")


def check_info(path: str, content: Mapping[str, Any]) -> None:
    """Refuse entries of a form's JSON that are the server's own: what it knows of an image, and which one is meant.

    Args:
        path: of the request.
        content: of the field "params" or "info".

    Raises:
        ValueError: names the entry.
    """
    if path.startswith("/datastore"):
        own = [key for key in content if key in _OWN_INFO or key.startswith("anomaly_")]
    else:
        own = [key for key in content if key in _OWN_OPTIONS]
    if own:
        raise ValueError(f"The entry {shown(own[0])} is the server's own. Leave it out.")


class _Exit:
    """Sends an answer: with the headers of the door, and, if it is JSON, without paths."""

    def __init__(self, send: Send, scope: Scope, folders: tuple[str, ...]) -> None:
        self._send = send
        self._folders = folders
        self._is_left_alone = scope["method"] == "HEAD" or _path_of(scope).startswith(("/proxy/", "/openapi.json"))
        self._start: Message | None = None
        self._body: list[bytes] = []
        self.has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            kind = Headers(raw=message["headers"]).get("content-type", "")
            if kind.startswith("application/json") and not self._is_left_alone:
                self._start = message
                return
        elif self._start is not None:
            self._body.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            message = {**message, "body": self._without_paths()}
            length = str(len(message["body"])).encode()
            headers = [(name, value) for name, value in self._start["headers"] if name != b"content-length"]
            self.has_begun = True
            await self._send({**self._start, "headers": [*headers, (b"content-length", length)]})
        self.has_begun = True
        await self._send(message)

    def _without_paths(self) -> bytes:
        text = b"".join(self._body).decode()
        folders = {json.dumps(folder, ensure_ascii=ascii)[1:-1] for folder in self._folders for ascii in (True, False)}
        return without_paths(text, sorted(folders)).encode()


def _path_of(scope: Scope) -> str:
    """The path as the routes have it."""
    return str(scope["path"]).removeprefix(scope.get("root_path", "")).removeprefix(settings.MONAI_LABEL_API_STR)


def _is_folder_of_ohif(path: str) -> bool:
    import monailabel.endpoints as endpoints

    name = path.removeprefix("/ohif").strip("/")
    return bool(name) and Path(endpoints.__path__[0], "static", "ohif", name).is_dir()


def _too_large(limit: int) -> NotOffered:
    return NotOffered(413, f"Expected a request of at most {limit} bytes. Send less, or start with --max-upload-mb.")


def _replay(body: IO[bytes], receive: Receive) -> Receive:
    """Give a body that was read once more, then what comes."""
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


async def _nothing() -> Message:
    return {"type": "http.disconnect"}

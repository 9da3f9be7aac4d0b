"""Request filter of the server: requests are checked before MONAI Label, and answers contain no paths."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import parse_qsl

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from aeflow_monai.label.names import check_values, quoted
from aeflow_monai.label.requests.answers import log_error, message_of, status_of
from aeflow_monai.label.requests.bodies import MAX_JSON, check_body, is_ambiguous, read_body, replay
from aeflow_monai.label.requests.callers import check_caller
from aeflow_monai.label.requests.exits import Exit, path_of
from aeflow_monai.label.requests.routes import NotOffered, Route, check_query, find_route
from aeflow_monai.label.requests.rules import Rules
from aeflow_monai.label.studies.dicomweb import require_converter

__all__ = ["Door", "check_infer", "close_door"]


def close_door(server: FastAPI, rules: Rules) -> None:
    """Put the request filter before MONAI Label's routes, replacing its CORS, which allows any page with credentials.

    Args:
        server: MONAI Label's server, which may already be running.
        rules: rules for the requests that it answers.
    """
    cors = Middleware(
        CORSMiddleware, allow_origins=rules.origins, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
    )
    server.user_middleware = [*([cors] if rules.origins else []), Middleware(Door, rules=rules)]
    server.middleware_stack = server.build_middleware_stack()


class Door:
    """Request filter: ASGI middleware that answers refused requests with the reason and passes on all others.

    Args:
        app: the application behind it.
        rules: rules for the requests that the server answers.
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
        exit_ = Exit(send, scope, self.rules.folders)
        try:
            await self._pass(scope, receive, exit_)
        except Exception as error:
            if exit_.has_begun:
                raise
            log_error(error)
            # what follows on the connection may belong to this request or be another one
            headers = {"connection": "close"} if is_ambiguous(scope) else None
            answer = JSONResponse({"detail": message_of(error)}, status_of(error), headers)
            await answer(scope, receive, exit_.send)

    async def _pass(self, scope: Scope, receive: Receive, exit_: Exit) -> None:
        if is_ambiguous(scope):
            raise NotOffered(400, "Expected a Content-Length or a Transfer-Encoding; got both. Send one of them.")
        check_caller(scope, self.rules)
        path = path_of(scope)
        route = find_route(scope["method"], path)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=50)
        self._check_names(route, scope["method"], path, query)
        with tempfile.SpooledTemporaryFile(max_size=MAX_JSON) as body:
            has_upload = False
            if route.body:
                limit = self.rules.max_upload if route.body == "form" else MAX_JSON
                await read_body(scope, receive, body, limit)
                has_upload = await check_body(scope, route, path, body, self.rules)
            check_infer(path, query, has_upload, self.rules.is_remote)
            try:
                await self.app(scope, replay(body, receive), exit_.send)
            except RuntimeError as error:
                if ("output", "dicom_seg") not in query or "does not exist" not in str(error):
                    raise
                # MONAI Label writes no file for an empty mask, but tries to send it
                raise ValueError("The mask is empty, and a DICOM SEG cannot be. Ask for output=image.") from None

    def _check_names(self, route: Route, method: str, path: str, query: list[tuple[str, str]]) -> None:
        check_query(query)
        check_values(dict(query))
        if path.startswith("/proxy/") and not self.rules.is_remote:
            raise NotOffered(404, "The studies are a folder, and no DICOMweb server.")
        if method == "PUT" and route.is_new and self.rules.is_remote:
            raise NotOffered(403, "The studies are a DICOMweb server's. Send the image there.")
        if path.startswith("/ohif") and _is_folder_of_ohif(path):
            raise NotOffered(404, f"There is nothing at {quoted(path)}.")
        if route.is_new or self.rules.is_remote or not path.startswith("/datastore"):
            return
        for name, value in query:
            if name in ("image", "label", "id") and not self.rules.has_image(value):
                raise NotOffered(404, f"There is no image {quoted(value)} among the studies.")


def check_infer(path: str, query: list[tuple[str, str]], has_upload: bool, is_remote: bool) -> None:
    """Refuse an infer request without an image, or for DICOM SEG of an image that is not on a DICOMweb server.

    Args:
        path: path of the request.
        query: names and values of the query.
        has_upload: whether the request has a file.
        is_remote: whether the studies are on a DICOMweb server.

    Raises:
        ValueError: names what is missing, for example the converter.
    """
    if not path.startswith("/infer/"):
        return
    if not has_upload and not any(name in ("image", "session_id") and value for name, value in query):
        raise ValueError("Expected an image: name one of the studies, or a session, or upload a file.")
    if ("output", "dicom_seg") in query and (has_upload or not is_remote):
        raise ValueError("DICOM SEG is for series of a DICOMweb server. Leave the output away.")
    if ("output", "dicom_seg") in query:
        require_converter()


def _is_folder_of_ohif(path: str) -> bool:
    import monailabel.endpoints as endpoints

    name = path.removeprefix("/ohif").strip("/")
    return bool(name) and Path(endpoints.__path__[0], "static", "ohif", name).is_dir()

"""Answers on their way out: with the headers of the door, and without paths."""

from __future__ import annotations

import json

from monailabel.config import settings
from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from aeflow_monai.label.requests.answers import without_paths

__all__ = ["Exit", "path_of"]

# Against pages that show ours in a frame, or take an answer for a script or a picture of theirs.
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Exit:
    """Sends an answer: with the headers of the door, and, if it is JSON, without paths.

    Args:
        send: to the client, see ASGI.
        scope: of the request.
        folders: whose paths are left out, see `without_paths`.
    """

    def __init__(self, send: Send, scope: Scope, folders: tuple[str, ...]) -> None:
        self._send = send
        self._folders = folders
        self._is_left_alone = scope["method"] == "HEAD" or path_of(scope).startswith(("/proxy/", "/openapi.json"))
        self._start: Message | None = None
        self._body: list[bytes] = []
        self.has_begun = False

    async def send(self, message: Message) -> None:
        """Send a part of the answer, or keep it until the answer is whole; see ASGI."""
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


def path_of(scope: Scope) -> str:
    """The path of a request as the routes have it.

    Args:
        scope: of the request, see ASGI.
    """
    return str(scope["path"]).removeprefix(scope.get("root_path", "")).removeprefix(settings.MONAI_LABEL_API_STR)

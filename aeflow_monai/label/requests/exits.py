"""Outgoing answers: security headers are added, and paths are removed."""

from __future__ import annotations

import json

from monailabel.config import settings
from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from aeflow_monai.label.requests.answers import without_paths

__all__ = ["Exit", "path_of"]

# Keep other pages from framing ours, and from loading answers as scripts or images.
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Exit:
    """ASGI send function that adds security headers, and removes paths from JSON.

    Args:
        send: ASGI send function to the client.
        scope: ASGI scope of the request.
        folders: folders whose paths are removed, see `without_paths`.
    """

    def __init__(self, send: Send, scope: Scope, folders: tuple[str, ...]) -> None:
        self._send = send
        self._folders = folders
        self._is_left_alone = scope["method"] == "HEAD" or path_of(scope).startswith(("/proxy/", "/openapi.json"))
        self._start: Message | None = None
        self._body: list[bytes] = []
        self.has_begun = False

    async def send(self, message: Message) -> None:
        """Send a part of the answer, or buffer it until the answer is complete; see ASGI."""
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
    """Return the path of a request in the form that routes use.

    Args:
        scope: ASGI scope of the request.
    """
    return str(scope["path"]).removeprefix(scope.get("root_path", "")).removeprefix(settings.MONAI_LABEL_API_STR)

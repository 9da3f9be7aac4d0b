"""Routes that the server answers: those that viewers need, their bodies, and the reasons why others are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from aeflow_monai.label.names import check_image_id, check_session_id, check_word, quoted

__all__ = ["NotOffered", "Route", "check_query", "find_route"]


class NotOffered(ValueError):
    """A request that this server does not answer.

    Attributes:
        status: HTTP status: 400, 403, 404, 405, 413, 414 or 415.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Route(NamedTuple):
    """A group of requests that are answered.

    Attributes:
        methods: HTTP methods.
        path: pattern of the whole path, without a trailing slash; its groups are validated by their names.
        body: type of the body: "" for none, "json" or "form".
        uploads: names of the files in a form.
        is_new: whether the named image may be new.
    """

    methods: tuple[str, ...]
    path: str
    body: str = ""
    uploads: tuple[str, ...] = ()
    is_new: bool = False


_OFFERED = (
    Route(("GET",), r"/openapi\.json|/favicon\.ico|/info|/auth|/auth/token/valid"),
    Route(("GET",), r"/static(/[\w-][\w.-]*)+|/ohif(/[\w-][\w.-]*)*"),
    # DICOMweb: the listing and reading requests of OHIF
    Route(("GET",), r"/proxy/dicom/(qido|wado)/(studies|series|instances)(/[\w-][\w.,-]*)*"),
    Route(("GET",), r"/model/(info/)?(?P<model>[^/]+)"),
    Route(("GET", "DELETE"), r"/train|/scoring|/batch/infer"),
    Route(("GET",), r"/datastore"),
    Route(("GET", "HEAD"), r"/datastore/image"),
    Route(("GET", "HEAD", "DELETE"), r"/datastore/label"),
    Route(("GET",), r"/datastore/(image|label)/info"),
    Route(("GET", "DELETE"), r"/session/(?P<session_id>[^/]+)"),
    Route(("POST",), r"/auth/token", "form"),
    Route(("POST",), r"/infer/(?P<model>[^/]+)", "form", ("file",), is_new=True),
    Route(("POST",), r"/train(/(?P<model>[^/]+))?", "json"),
    Route(("POST",), r"/scoring(/(?P<method>[^/]+))?", "json"),
    Route(("POST",), r"/batch/infer/(?P<model>[^/]+)", "json"),
    Route(("POST",), r"/activelearning/(?P<strategy>[^/]+)", "json"),
    Route(("PUT",), r"/datastore(/image)?", "form", ("file",), is_new=True),
    Route(("PUT",), r"/datastore/label", "form", ("label",)),
    Route(("PUT",), r"/datastore/((image|label)/info|updatelabelinfo)", "form"),
    Route(("PUT",), r"/session", "form", ("files",)),
)


class _Refusal(NamedTuple):
    method: str
    path: str
    status: int
    reason: str


# Other routes of MONAI Label, with the alternative to each. The first match gives the message.
_REFUSED = (
    _Refusal(
        "GET",
        r"|/docs",
        403,
        "This page would run scripts of another site in the place of the server's own. Open /ohif/, or see "
        "docs/monai_label.md and GET /openapi.json.",
    ),
    _Refusal(
        "PUT",
        r"/model/.*",
        400,
        "A model file alone does not know its preprocessing, so none is taken from a client: start the server with "
        "--model <folder>, or train from the viewer.",
    ),
    _Refusal(
        "DELETE",
        r"/model/.*",
        403,
        "No client removes a model. To go back to an older version, rename the folder of the newest, see "
        "docs/monai_label.md.",
    ),
    _Refusal("DELETE", r"/datastore(/image)?", 403, "No client removes an image. Take its file out of the studies."),
    _Refusal("GET", r"/datastore/dataset", 403, "The studies are not served as an archive. Copy their folder."),
    _Refusal("POST", r"/reload", 403, "The app is not loaded anew while it serves. Restart the server."),
    _Refusal("GET", r"/logs.*", 403, "Logs are not served. They are in the app's folder, on the server's machine."),
    _Refusal("POST", r"/infer/wsi(_v2)?/.*", 403, "This app takes no whole-slide images. Use POST /infer/<task>."),
    _Refusal("POST", r"/proxy/.*", 403, "Nothing is sent to the DICOMweb server by this way. Send it there directly."),
)

_MAX_PATH = 1000
_TRUE = ("1", "true", "yes", "on", "t", "y")


def find_route(method: str, path: str) -> Route:
    """Return the route of a request, and validate the names in its path.

    Args:
        method: HTTP method.
        path: decoded path.

    Raises:
        NotOffered: the route does not exist.
        ValueError: a name in the path is invalid.

    Example:
        >>> find_route("POST", "/infer/anomaly_mask").uploads
        ('file',)
        >>> find_route("POST", "/reload")
        Traceback (most recent call last):
        aeflow_monai.label.requests.routes.NotOffered: The app is not loaded anew while it serves. Restart the server.
    """
    if len(path) > _MAX_PATH:
        raise NotOffered(414, f"Expected an address of at most {_MAX_PATH} characters; got {len(path)}.")
    path = path.removesuffix("/")
    for refusal in _REFUSED:
        if method == refusal.method and re.fullmatch(refusal.path, path, re.DOTALL):
            raise NotOffered(refusal.status, refusal.reason)
    allowed: list[str] = []
    for route in _OFFERED:
        if not (match := re.fullmatch(route.path, path)):
            continue
        if method not in route.methods:
            allowed.extend(route.methods)
            continue
        for kind, name in match.groupdict().items():
            if name is not None:
                _check(kind, name)
        return route
    if allowed:
        raise NotOffered(405, f"Expected {' or '.join(allowed)} at this address; got {quoted(method)}.")
    raise NotOffered(404, f"There is nothing at {quoted(path)}.")


def check_query(pairs: Iterable[tuple[str, str]]) -> None:
    """Refuse a query or form field with an invalid name, or with a request that this server does not support.

    Args:
        pairs: decoded names and values, in their order.

    Raises:
        ValueError: names the fault.
    """
    for name, value in pairs:
        if name in ("image", "label", "id", "tag", "session_id", "model", "method", "strategy"):
            if value:
                _check(name, value)
        elif name == "uncompress" and value.lower() in _TRUE:
            raise ValueError("Archives are not unpacked here. Upload the image itself.")
        elif name == "run_sync" and value.lower() in _TRUE:
            raise ValueError("Tasks run in the background: leave run_sync away, and ask for the task's status.")


def _check(kind: str, name: str) -> None:
    if kind in ("image", "label", "id"):
        check_image_id(name)
    elif kind == "session_id":
        check_session_id(name)
    else:
        check_word(kind, name)

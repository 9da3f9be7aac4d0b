"""Access by caller: the machines, Host names and web pages that the server answers."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Scope

from aeflow_monai.label.names import quoted
from aeflow_monai.label.requests.addresses import is_known_host, is_known_origin, is_loopback
from aeflow_monai.label.requests.routes import NotOffered
from aeflow_monai.label.requests.rules import Rules

__all__ = ["check_caller"]

_FOREIGN = ("cross-site", "same-site")  # values of Sec-Fetch-Site


def check_caller(scope: Scope, rules: Rules) -> None:
    """Refuse a request whose client machine, Host or web page is not allowed.

    Args:
        scope: ASGI scope of the request.
        rules: rules for the requests that the server answers.

    Raises:
        NotOffered: names the option that would allow it.
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
            f"This server is not known as {quoted(', '.join(hosts))}. Ask it by the address that it listens at, or "
            "start it with --origin <scheme>://<name>:<port>.",
        )
    if any(not is_known_origin(origin, hosts[0], rules.origins) for origin in origins):
        raise NotOffered(
            403,
            f"Web pages of {quoted(', '.join(origins))} may not ask this server. If they should, start it with "
            "--origin <address of the page>.",
        )
    if not origins and scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") in _FOREIGN:
        raise NotOffered(403, "Web pages of another site may not ask this server.")

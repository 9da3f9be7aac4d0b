"""Addresses of the server: the allowed values of a request's Host and Origin."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

__all__ = ["is_known_host", "is_known_origin", "is_loopback", "parse_origin"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443}


def parse_origin(text: str) -> str:
    """Normalise an address as a browser sends it in Origin: scheme, host, and a port that is not the scheme's default.

    Args:
        text: an address such as "https://reading.example.org".

    Raises:
        ValueError: it is not a valid origin.

    Example:
        >>> parse_origin("https://Reading.example.org:443/")
        'https://reading.example.org'
    """
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = 0
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in _PORTS or not parts.hostname or port == 0 or more:
        raise ValueError(
            f"Expected an address such as https://reading.example.org or http://192.168.0.7:8000; got {text!r}. "
            "Correct --origin."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port and port != _PORTS[parts.scheme] else "")


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_known_host(host: str, server: tuple[str, int | None], told: Iterable[str]) -> bool:
    """Whether a request's Host is an address of this server rather than a name that an attacker controls.

    By DNS rebinding, a web page whose name resolves to this machine passes the browser's same-origin check, but its
    requests carry that name as Host.

    Args:
        host: Host of the request.
        server: address and port that the connection was made to.
        told: configured origins, see `parse_origin`.

    Example:
        >>> is_known_host("localhost:8000", ("127.0.0.1", 8000), [])
        True
        >>> is_known_host("evil.example:8000", ("127.0.0.1", 8000), [])
        False
    """
    name, port = _split(host, "http")
    own = {*_LOOPBACK, str(_address(server[0]) or server[0])}
    if name in own and port == (server[1] or port):
        return True
    return any(
        (name, port) == _of_origin(origin) or (name, _split(host, "https")[1]) == _of_origin(origin) for origin in told
    )


def is_known_origin(origin: str, host: str, told: Iterable[str]) -> bool:
    """Whether a request comes from a page of this server, or of a configured origin.

    Args:
        origin: Origin of the request.
        host: known Host of the request.
        told: configured origins, see `parse_origin`.

    Example:
        >>> is_known_origin("http://localhost:8000", "localhost:8000", [])
        True
        >>> is_known_origin("http://localhost:3000", "localhost:8000", [])
        False
    """
    try:
        origin = parse_origin(origin)
    except ValueError:  # for example "null", from a page without an address
        return False
    return origin in told or (origin.startswith("http://") and _of_origin(origin) == _split(host, "http"))


def _of_origin(origin: str) -> tuple[str, int]:
    parts = urlsplit(origin)
    return str(parts.hostname), parts.port or _PORTS[parts.scheme]


def _split(host: str, scheme: str) -> tuple[str, int]:
    """Split a Host into name and port; the name is empty if it is invalid."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "" if parts.netloc == host and "@" not in host else ""), parts.port or _PORTS[scheme]
    except ValueError:
        return "", 0


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address

"""Validation of the names in a request (images, tags, sessions, uploads) and of texts in its options."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from aeflow_monai.printable import is_unsafe, shown

__all__ = [
    "check_image_id",
    "check_session_id",
    "check_upload_name",
    "check_values",
    "check_word",
    "parse_object",
    "quoted",
]

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SESSION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_NAME = 200  # bytes, so that a suffix still fits into the 255 of a file system
_MAX_TEXT = 4096
_MAX_DEPTH = 8
# Most characters of a value that a message quotes.
_SHOWN = 60


def check_image_id(name: str) -> None:
    """Refuse an invalid name of an image.

    Args:
        name: name in the request.

    Raises:
        ValueError: it is empty or too long, has a separator or a non-printable character, or begins with a dot.

    Example:
        >>> check_image_id("sub-01 (T1w)")
        >>> check_image_id("../../etc/passwd")
        Traceback (most recent call last):
        ValueError: There is no image '../../etc/passwd': a name has no '/'. Choose an image of the studies.
    """
    if fault := _fault(name):
        raise ValueError(f"There is no image {quoted(name)}: a name {fault}. Choose an image of the studies.")


def check_word(kind: str, name: str) -> None:
    """Refuse an invalid tag of a label, or an invalid name of a task, method or strategy.

    Args:
        kind: kind of name, for the message.
        name: name in the request.

    Raises:
        ValueError: it does not consist of 1 to 64 letters, digits, dots, hyphens and underscores, or has two dots in a
                row.
    """
    if not _WORD.fullmatch(name) or ".." in name:
        raise ValueError(
            f"Expected a {kind} of 1 to 64 letters, digits, '.', '-' and '_'; got {quoted(name)}. Correct the request."
        )


def check_session_id(name: str) -> None:
    """Refuse an invalid session id.

    Raises:
        ValueError: it is not a UUID in lower case.
    """
    if not is_session_id(name):
        raise ValueError(
            f"Expected the id of a session, as `PUT /session/` answers it; got {quoted(name)}. Begin a new session."
        )


def is_session_id(name: str) -> bool:
    """Whether a name has the form of a session id."""
    return bool(_SESSION.fullmatch(name))


def check_upload_name(name: str, suffixes: tuple[str, ...]) -> str:
    """Return the file name of an upload, and refuse one that cannot become a file of the studies.

    MONAI Label's client sends the full path of a file on the reader's machine, so only the part after the last
    separator is used.

    Args:
        name: name in the request.
        suffixes: allowed suffixes, in upper or lower case.

    Returns:
        The part after the last separator.

    Raises:
        ValueError: a part of the path is "..", or the last part is not a valid name or has another suffix.

    Example:
        >>> check_upload_name("/home/reader/label.nii.gz", (".nii.gz",))
        'label.nii.gz'
    """
    parts = re.split(r"[/\\]", name)
    fault = "has no '..'" if ".." in parts else _fault(parts[-1])
    if fault:
        raise ValueError(f"Expected a file to upload; got one named {quoted(name)}: a name {fault}. Rename the file.")
    if not parts[-1].lower().endswith(suffixes):
        raise ValueError(f"Expected a file of {', '.join(suffixes)}; got {quoted(parts[-1])}. Convert the file.")
    return parts[-1]


def parse_object(name: str, text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object in a request, and check it with `check_values`.

    Args:
        name: name of the field, for the message.
        text: JSON text; empty for an empty object.

    Raises:
        ValueError: it is not JSON, not an object, or has a refused value.
    """
    if not text.strip():
        return {}
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected a JSON object as {name}; got what is no JSON. Correct the request.") from error
    if not isinstance(content, dict):
        raise ValueError(f"Expected a JSON object as {name}; got {quoted(json.dumps(content))}. Correct the request.")
    check_values(content)
    return content


def check_values(value: Any, depth: int = 0) -> None:
    """Refuse options of a request that could forge log lines, or are too long.

    Args:
        value: a JSON value.
        depth: nesting depth of the value.

    Raises:
        ValueError: a text has non-printable characters or more than 4096 characters; a number is not finite or has more
            than 18 digits; or lists and objects are nested more than 8 deep.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"Expected options that lie at most {_MAX_DEPTH} deep; got more. Correct the request.")
    if isinstance(value, str):
        if len(value) > _MAX_TEXT:
            raise ValueError(f"Expected a text of at most {_MAX_TEXT} characters; got {len(value)}.")
        if _is_unsafe(value):
            raise ValueError(
                f"Expected a text of characters that are printed; got {quoted(value)}. Correct the request."
            )
    elif isinstance(value, dict):
        for key, item in value.items():
            check_values(key, depth + 1)
            check_values(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_values(item, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("Expected finite numbers; got one that is larger than any. Correct the request.")
    elif isinstance(value, int) and math.log10(abs(value) + 1) > 18:
        raise ValueError("Expected numbers of at most 18 digits. Correct the request.")


def quoted(value: object) -> str:
    r"""Quote a value of a request for a message, escaped by `aeflow_monai.printable.shown` and shortened.

    Args:
        value: value in a request.

    Example:
        >>> print(quoted("a\nb"))
        'a\nb'
    """
    text = str(value)
    return f"'{shown(text[:_SHOWN])}{'...' if len(text) > _SHOWN else ''}'"


def _refuse_constant(name: str) -> None:
    """Refuse NaN and infinities, which Python accepts, but which JSON lacks, so that answers with them fail."""
    raise ValueError(name)


def _is_unsafe(text: str) -> bool:
    return any(map(is_unsafe, text))


def _fault(name: str) -> str:
    """Return the rule that a name violates; empty if it is valid."""
    if not name.strip():
        return "is not empty"
    if _is_unsafe(name):
        return "has characters that are printed, and no others"
    if separators := [char for char in "/\\" if char in name]:
        return f"has no '{separators[0]}'"
    if name.startswith("."):
        return "does not begin with a dot"
    if len(name.encode()) > _MAX_NAME:
        return f"has at most {_MAX_NAME} bytes"
    return ""

"""What a request may name: images, tags, sessions, uploads, and texts in its options."""

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
# Of a value that a message repeats; the rest is left out.
_SHOWN = 60


def check_image_id(name: str) -> None:
    """Refuse what cannot be the name of an image among the studies.

    Args:
        name: as a request has it.

    Raises:
        ValueError: it is empty or too long, has a separator or a character that is not printed, or begins with a dot.

    Example:
        >>> check_image_id("sub-01 (T1w)")
        >>> check_image_id("../../etc/passwd")
        Traceback (most recent call last):
        ValueError: There is no image '../../etc/passwd': a name has no '/'. Choose an image of the studies.
    """
    if fault := _fault(name):
        raise ValueError(f"There is no image {quoted(name)}: a name {fault}. Choose an image of the studies.")


def check_word(kind: str, name: str) -> None:
    """Refuse what cannot be a label's tag or the name of a task, method or strategy.

    Args:
        kind: what it names, for the message.
        name: as a request has it.

    Raises:
        ValueError: it is not made of 1 to 64 letters, digits, dots, hyphens and underscores, or has two dots in a row.
    """
    if not _WORD.fullmatch(name) or ".." in name:
        raise ValueError(
            f"Expected a {kind} of 1 to 64 letters, digits, '.', '-' and '_'; got {quoted(name)}. Correct the request."
        )


def check_session_id(name: str) -> None:
    """Refuse what this server has not given as the id of a session.

    Raises:
        ValueError: it is no UUID in lower case.
    """
    if not is_session_id(name):
        raise ValueError(
            f"Expected the id of a session, as `PUT /session/` answers it; got {quoted(name)}. Begin a new session."
        )


def is_session_id(name: str) -> bool:
    """Whether this has the form of a session's id."""
    return bool(_SESSION.fullmatch(name))


def check_upload_name(name: str, suffixes: tuple[str, ...]) -> str:
    """Refuse the name of an upload that cannot become a file of the studies.

    MONAI Label's client sends the whole path that a file has on the reader's machine, so only what follows the last
    separator counts.

    Args:
        name: as the request has it.
        suffixes: one of which it ends with, in any case.

    Returns:
        What follows the last separator.

    Raises:
        ValueError: a part of it is "..", or its last part is no name or has another suffix.

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
    """A JSON object of a request, checked by `check_values`.

    Args:
        name: of the field, for the message.
        text: empty for none.

    Raises:
        ValueError: it is no JSON, no object, or has a value that is refused.
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
    """Refuse options of a request that could forge a line of a log, or are endless.

    Args:
        value: what JSON can hold.
        depth: how deep it lies.

    Raises:
        ValueError: a text has characters that are not printed or more than 4096 of them; a number is not finite or has
            more than 18 digits; or lists and objects lie more than 8 deep.
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
    r"""A value of a request as a message repeats it: in quotes, as `aeflow_monai.printable.shown`, and not endless.

    Args:
        value: of a request.

    Example:
        >>> print(quoted("a\nb"))
        'a\nb'
    """
    text = str(value)
    return f"'{shown(text[:_SHOWN])}{'...' if len(text) > _SHOWN else ''}'"


def _refuse_constant(name: str) -> None:
    """NaN and infinities, which Python reads and writes, but no JSON has, and answers with them fail."""
    raise ValueError(name)


def _is_unsafe(text: str) -> bool:
    return any(map(is_unsafe, text))


def _fault(name: str) -> str:
    """What a name would have to be like that this one is not; empty if nothing is wrong."""
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

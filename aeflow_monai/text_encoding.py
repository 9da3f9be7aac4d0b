"""The encoding of a text file, by its first bytes."""

from __future__ import annotations

import codecs

__all__ = ["encoding_of"]

_MARKS = {
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def encoding_of(content: bytes, name: str) -> str:
    r"""Encoding of a text that people write: UTF-8, or what its byte order mark says.

    Args:
        content: of the file, or its first four bytes.
        name: of the file, for messages.

    Returns:
        A name for `open`, which leaves the mark out.

    Raises:
        ValueError: it is UTF-16 or UTF-32 without a mark.

    Example:
        >>> [encoding_of(content, "list.txt") for content in ("a.png".encode("utf-16"), b"a.png")]
        ['utf-16', 'utf-8-sig']
    """
    for encoding, marks in _MARKS.items():  # the mark of UTF-32 begins as that of UTF-16 does
        if content.startswith(marks):
            return encoding
    if b"\0" in content[:4]:
        raise ValueError(
            f"Expected text in {name}, in UTF-8, or in UTF-16 with a byte order mark; got zero bytes. Save it as UTF-8."
        )
    return "utf-8-sig"

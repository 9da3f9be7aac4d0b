"""Detection of the encoding of a text file by its first bytes."""

from __future__ import annotations

import codecs

__all__ = ["encoding_of"]

_MARKS = {
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def encoding_of(content: bytes, name: str) -> str:
    r"""Return the encoding of a text file: UTF-8, or that of its byte order mark.

    Args:
        content: content of the file, or its first four bytes.
        name: name of the file, for messages.

    Returns:
        An encoding for `open`, which drops the mark.

    Raises:
        ValueError: it is UTF-16 or UTF-32 without a mark.

    Example:
        >>> [encoding_of(content, "list.txt") for content in ("a.png".encode("utf-16"), b"a.png")]
        ['utf-16', 'utf-8-sig']
    """
    for encoding, marks in _MARKS.items():  # the mark of UTF-32 starts like that of UTF-16
        if content.startswith(marks):
            return encoding
    if b"\0" in content[:4]:
        raise ValueError(
            f"Expected text in {name}, in UTF-8, or in UTF-16 with a byte order mark; got zero bytes. Save it as UTF-8."
        )
    return "utf-8-sig"

"""Names and messages that are safe to print to a terminal."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["counted", "first_line", "is_unsafe", "meant", "shown", "some"]

# Character classes that begin or end text of the other direction, so that "\u202egnp.exe" looks like "exe.png".
_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def counted(n: int, thing: str, plural: str = "") -> str:
    """Return a number of things in words.

    Example:
        >>> counted(1, "image"), counted(0, "image"), counted(2, "study", "studies")
        ('1 image', '0 images', '2 studies')
    """
    return f"{n} {thing if n == 1 else plural or thing + 's'}"


def first_line(message: object) -> str:
    """Return the first non-empty line of a message; empty without one."""
    return next((line.strip() for line in str(message).splitlines() if line.strip()), "")


def is_unsafe(sign: str) -> bool:
    """Return whether a character controls a terminal, ends a line, turns text or stands for an undecodable byte."""
    return unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(sign) in _TURNS


def meant(word: object, known: Iterable[str], n: int = 1) -> str:
    """Return a sentence, with a space before it, that suggests known words; empty if none is close.

    Args:
        word: the given word.
        known: the known words.
        n: number of suggestions.

    Example:
        >>> meant("chest-xray", ["paper", "chest_xray"]), meant("x", ["paper"])
        (' Did you mean chest_xray?', '')
    """
    near = difflib.get_close_matches(str(word), known, n=n)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def shown(name: object) -> str:
    r"""Return a printable name, with control characters and bytes that are not UTF-8 escaped.

    Args:
        name: name of a file or a case.

    Example:
        >>> shown("red\x1b[31m.png")
        'red\\x1b[31m.png'
    """
    return "".join(sign.encode("unicode_escape").decode() if is_unsafe(sign) else sign for sign in str(name))


def some(names: Sequence[object], limit: int = 5) -> str:
    """Return the first names, printable, and how many more there are.

    Args:
        names: the names.
        limit: number of names to show.

    Example:
        >>> some(["a", "b", "c"], limit=2), some([])
        ('a, b and 1 more', 'none')
    """
    listed = ", ".join(shown(name) for name in names[:limit])
    return (listed or "none") + (f" and {len(names) - limit} more" if len(names) > limit else "")

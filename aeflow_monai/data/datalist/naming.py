"""Names of cases: short, fit for file names, and never the same for two images."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TypeVar

from aeflow_monai.printable import is_unsafe, shown

__all__ = ["case_problem", "fitting_name", "key_of", "name_cases", "path_problem", "unique_names"]

_LONGEST = 150  # bytes of a case's name, which outputs and their unfinished files add to; file systems end at 255
_Key = TypeVar("_Key", bound=Hashable)


def name_cases(short: Mapping[Path, str], root: Path, taken: set[str]) -> dict[Path, str]:
    """The short names of paths; where one is not unique with the folder too, then with the extension too.

    What differs in upper and lower case only is not unique, since not every file system tells it apart.
    """
    names = {path: fitting_name(name) for path, name in short.items()}
    for tail in (short, {path: path.name.replace(".", "_") for path in short}):
        counts = Counter(map(key_of, (*names.values(), *taken)))
        for path, name in names.items():
            if counts[key_of(name)] > 1:
                inner = path.relative_to(root if path.is_relative_to(root) else path.anchor)
                names[path] = fitting_name("_".join([*(part for part in inner.parts[:-1] if part != ".."), tail[path]]))
    return unique_names(names, taken)


def unique_names(names: Mapping[_Key, str], taken: set[str]) -> dict[_Key, str]:
    """The names, where several are the same each with the beginning of a hash of its key behind it."""
    counts = Counter(map(key_of, (*names.values(), *taken)))
    return {
        key: fitting_name(f"{name}-{_hash(str(key))}") if counts[key_of(name)] > 1 else name
        for key, name in names.items()
    }


def key_of(name: str) -> str:
    """The same for names that a file system may take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def fitting_name(name: str) -> str:
    r"""A name that can be a part of a file's name anywhere: no control character or separator, and not too long.

    Example:
        >>> fitting_name("a\n..b/c "), len(fitting_name("x" * 300))
        ('a_b_c', 150)
    """
    fitting = "".join("_" if is_unsafe(sign) or sign in "/\\" else sign for sign in name)
    fitting = re.sub(r"\.{2,}", "", fitting).strip(" .") or "case"
    if len(fitting.encode()) > _LONGEST:
        tail = f"-{_hash(name)}"
        fitting = fitting.encode()[: _LONGEST - len(tail)].decode(errors="ignore") + tail
    return fitting


def case_problem(case: str) -> str:
    """Why a name that a list gives to a case cannot be part of a file's name; nothing if it can or is too long only."""
    if all(not is_unsafe(sign) and sign not in "/\\" for sign in case) and ".." not in case:
        return ""
    return (
        f"The case is named {shown(case)!r}, but outputs are named after it: expected a name without path separators, "
        "'..' and control characters. Correct it in the list."
    )


def path_problem(path: Path) -> str:
    """Why a file cannot be used, by its path; nothing if it can."""
    if not any(map(is_unsafe, str(path))):
        return ""
    return (
        f"The path {shown(path)} has control characters, such as a new line, or bytes that are not UTF-8. Rename the "
        "file or its folder."
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]

"""Names of cases: short, valid in file names, and unique."""

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

_LONGEST = 150  # bytes; names of outputs and temporary files append to it, and file systems allow 255
_Key = TypeVar("_Key", bound=Hashable)


def name_cases(short: Mapping[Path, str], root: Path, taken: set[str]) -> dict[Path, str]:
    """Return short names of paths; if one is not unique, the folder is added, then the extension too.

    Names that differ only in upper and lower case are not unique, since not every file system distinguishes them.
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
    """Return the names; equal names get the beginning of a hash of their key appended."""
    counts = Counter(map(key_of, (*names.values(), *taken)))
    return {
        key: fitting_name(f"{name}-{_hash(str(key))}") if counts[key_of(name)] > 1 else name
        for key, name in names.items()
    }


def key_of(name: str) -> str:
    """Return a key that is equal for names that a file system may treat as one."""
    return unicodedata.normalize("NFC", name).casefold()


def fitting_name(name: str) -> str:
    r"""Return a name that is valid as a part of a file name: no control character or separator, and not too long.

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
    """Return why a listed case name cannot be a part of a file name; empty if it can or is merely too long."""
    if all(not is_unsafe(sign) and sign not in "/\\" for sign in case) and ".." not in case:
        return ""
    return (
        f"The case is named {shown(case)!r}, but outputs are named after it: expected a name without path separators, "
        "'..' and control characters. Correct it in the list."
    )


def path_problem(path: Path) -> str:
    """Return why a path cannot be used; empty if it can."""
    if not any(map(is_unsafe, str(path))):
        return ""
    return (
        f"The path {shown(path)} has control characters, such as a new line, or bytes that are not UTF-8. Rename the "
        "file or its folder."
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]

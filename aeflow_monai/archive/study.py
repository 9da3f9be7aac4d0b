"""A study of an archive, and which files are lists of studies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["LISTS", "Study", "is_list"]

LISTS = (".txt", ".csv", ".jsonl")


class Study(NamedTuple):
    """One study of an archive.

    Attributes:
        key: its path below the folder of the list, or its absolute path: what it is known by.
        item: of a datalist: "image", "case", "patient", and "problem" if it cannot be used.
    """

    key: str
    item: dict[str, Any]


def is_list(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a list that is read line by line."""
    return Path(path).suffix.lower() in LISTS and Path(path).is_file()

"""Studies of an archive, and recognition of lists of studies."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["LISTS", "Study", "is_list", "study_key"]

LISTS = (".txt", ".csv", ".jsonl")


class Study(NamedTuple):
    """One study of an archive.

    Attributes:
        key: unique key, see `study_key`.
        item: item of a datalist: "image", "case", "patient", and "problem" if it cannot be used.
    """

    key: str
    item: dict[str, Any]


def study_key(paths: Iterable[str]) -> str:
    r"""Return the unique key of a study.

    The key consists of the paths, separated by ";". Any ";" and "\" in the paths are escaped only where the result
    would be ambiguous, so that a Windows path stays unchanged.

    Args:
        paths: paths of its images, relative to the folder of the list, or absolute.

    Example:
        >>> print(study_key(["t1.nii", "t2.nii"]), study_key(["t1.nii;t2.nii"]), study_key([r"site\t1.nii"]))
        t1.nii;t2.nii t1.nii\;t2.nii site\t1.nii
    """
    paths = [*paths]
    if any(";" in path or path.endswith("\\") for path in paths):
        paths = [path.replace("\\", "\\\\").replace(";", "\\;") for path in paths]
    return ";".join(paths)


def is_list(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a list that is read line by line."""
    return Path(path).suffix.lower() in LISTS and Path(path).is_file()

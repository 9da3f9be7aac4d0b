"""Group files of several modalities into cases by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from aeflow_monai.data.datalist.entries import UNSPLIT, Entry
from aeflow_monai.data.datalist.image_files import stem
from aeflow_monai.data.datalist.mask_names import beginnings
from aeflow_monai.printable import shown, some

__all__ = [
    "BRATS",
    "Case",
    "beginning_of",
    "cases_of",
    "entry_of",
    "files_found",
    "in_order",
    "missing_in",
    "named_after",
]

# File name endings of each modality: the key as in BraTS 2018-2021, then as in BraTS 2023 and other data sets.
BRATS = {"flair": ("t2f",), "t1": ("t1n",), "t1ce": ("t1c", "t1gd"), "t2": ("t2w",), "seg": ()}


class Case(NamedTuple):
    """The files of one folder whose names have the same beginning."""

    folder: Path
    name: str
    found: dict[str, list[Path]]  # by modality
    others: list[Path]


def cases_of(
    root: Path, files: Sequence[Path], modalities: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> list[Case]:
    """Group files, also those without a modality, by folder and by the part of their names before the modality."""
    folders = defaultdict(list)
    for path in files:
        folders[path.parent].append(path)
    # folders that hold a case of the same name, as in BraTS
    named = {folder.name for folder, paths in folders.items() if _holds_its_case(folder, paths, modalities, synonyms)}

    def others_of(path: Path) -> set[str]:
        """Return the names of such folders that a file name begins with."""
        return named & {*beginnings(stem(path))}

    cases = []
    for folder, paths in folders.items():
        found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        others = []
        for path in paths:
            begun = {name: beginning_of(stem(path), name, synonyms) for name in modalities}
            for name, beginning in begun.items():
                if beginning is not None:
                    found[beginning][name].append(path)
            if all(beginning is None for beginning in begun.values()):
                others.append(path)
        claimed = defaultdict(list)
        for path in others:
            owner = max((b for b in found if _begins(stem(path), b)), key=len, default=None)
            if owner is None and folder != root and folder.name in found and not (others_of(path) - {folder.name}):
                owner = folder.name  # an unrelated name in the folder of a single case
            elif owner is None:
                owner = re.split(r"[_-](?=[^_-]*$)", stem(path))[0]
                owner = "" if owner == stem(path) and folder != root else owner
            claimed[owner].append(path)
        for beginning in sorted({*found, *claimed}):
            case_found = {name: found[beginning][name] for name in modalities if found[beginning][name]}
            cases.append(Case(folder, beginning or folder.name, case_found, claimed[beginning]))
    return cases


def _holds_its_case(
    folder: Path, paths: Sequence[Path], modalities: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> bool:
    return any(beginning_of(stem(path), name, synonyms) == folder.name for path in paths for name in modalities)


def in_order(paths: Sequence[Path], modalities: Sequence[str]) -> tuple[Path, ...]:
    """Sort the files of a list's item into the order of the modalities, which are taken from the file names.

    Args:
        paths: files of the item.
        modalities: modalities that become its channels.

    Raises:
        ValueError: there is not exactly one file for each modality.

    Example:
        >>> [path.name for path in in_order([Path("a_t1.nii"), Path("a_flair.nii")], ["flair", "t1"])]
        ['a_flair.nii', 'a_t1.nii']
    """
    got = f"Expected one file for each of the modalities {', '.join(modalities)}; got {some([p.name for p in paths])}."
    if len(paths) != len(modalities):
        raise ValueError(f"{got} Name all of them in one line or item of the list.")
    if len(paths) == 1:
        return tuple(paths)
    of_paths = {path: _modality_of(path, modalities) for path in paths}
    if sorted(filter(None, of_paths.values())) != sorted(modalities):
        raise ValueError(
            f"{got} Which is which their names do not tell: they have to end in _{modalities[0]} and so on."
        )
    return tuple(sorted(paths, key=lambda path: modalities.index(str(of_paths[path]))))


def _modality_of(path: Path, modalities: Sequence[str]) -> str | None:
    """Return the modality that a file name ends in; the longest, if several match."""
    fitting = [name for name in modalities if beginning_of(stem(path), name, BRATS) is not None]
    return max(fitting, key=len, default=None)


def beginning_of(name: str, modality: str, synonyms: Mapping[str, Sequence[str]]) -> str | None:
    """Return the part of a file name before the modality, possibly empty, or None if it has another modality."""
    for ending in (modality, *synonyms.get(modality, ())):
        if name.lower() == ending.lower():
            return ""
        if name.lower().endswith(tuple(f"{sign}{ending.lower()}" for sign in "_-.")):
            return name[: -len(ending) - 1]
    return None


def _begins(name: str, beginning: str) -> bool:
    return name == beginning or not beginning or name.startswith(tuple(f"{beginning}{sign}" for sign in "_-."))


def entry_of(
    case: Case, modalities: Sequence[str], problem: str, label: int | None, mask: Path | None, patient: str
) -> Entry:
    """Return the entry of a case; its folder replaces the image if no modality was found."""
    images = tuple(case.found[name][0] for name in modalities if name in case.found) or (case.folder,)
    return Entry(UNSPLIT, images, label, mask, patient=patient, named=named_after(case), problem=problem)


def named_after(case: Case) -> Path:
    """Return a path that names a case; it need not exist."""
    return case.folder if case.name == case.folder.name else case.folder / case.name


def missing_in(case: Case, modalities: Sequence[str]) -> str:
    """Return why the modalities of a case cannot be stacked; empty if they can."""
    asked = f"asked for {', '.join(modalities)}; found: {files_found(case)}"
    if missing := [name for name in modalities if name not in case.found]:
        return (
            f"The case {shown(case.name)} in {shown(case.folder)} lacks the modality {', '.join(missing)}; {asked}. "
            "Add the file, or ask for other modalities with --modalities."
        )
    if twice := [name for name in modalities if len(case.found[name]) > 1]:
        return (
            f"The case {shown(case.name)} in {shown(case.folder)} has several files of the modality "
            f"{', '.join(twice)}; {asked}. Keep one of them."
        )
    return ""


def files_found(case: Case) -> str:
    """Return the names of a case's files for an error message."""
    return some(sorted(path.name for paths in (*case.found.values(), case.others) for path in paths), 10)

"""Files of several modalities, grouped into the cases that their names tell."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from aeflow_monai.data.datalist.entries import UNSPLIT, Entry
from aeflow_monai.data.datalist.image_files import stem
from aeflow_monai.printable import shown, some

__all__ = ["Case", "beginning_of", "cases_of", "entry_of", "files_found", "in_order", "missing_in", "named_after"]


class Case(NamedTuple):
    """Files of one folder whose names have one beginning."""

    folder: Path
    name: str
    found: dict[str, list[Path]]  # by modality
    others: list[Path]


def cases_of(
    root: Path, files: Sequence[Path], modalities: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> list[Case]:
    """Files grouped by folder and by what their names have before the modality, those without any modality too."""
    folders = defaultdict(list)
    for path in files:
        folders[path.parent].append(path)
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
            of_another = any(_begins(stem(path), other.name) for other in folders if other.name and other != folder)
            if owner is None and folder != root and folder.name in found and not of_another:
                owner = folder.name  # a file with a name of its own in the folder of one case
            elif owner is None:
                owner = re.split(r"[_-](?=[^_-]*$)", stem(path))[0]
                owner = "" if owner == stem(path) and folder != root else owner
            claimed[owner].append(path)
        for beginning in sorted({*found, *claimed}):
            case_found = {name: found[beginning][name] for name in modalities if found[beginning][name]}
            cases.append(Case(folder, beginning or folder.name, case_found, claimed[beginning]))
    return cases


def in_order(paths: Sequence[Path], modalities: Sequence[str]) -> tuple[Path, ...]:
    """The files of an item of a list in the order of the modalities, which their names tell.

    Args:
        paths: of the item.
        modalities: that become its channels.

    Raises:
        ValueError: there is not one file for each.

    Example:
        >>> [path.name for path in in_order([Path("a_t1.nii"), Path("a_flair.nii")], ["flair", "t1"])]
        ['a_flair.nii', 'a_t1.nii']
    """
    found = [[path for path in paths if beginning_of(stem(path), name, {}) is not None] for name in modalities]
    if len(paths) != len(modalities) or any(len(fitting) != 1 for fitting in found):
        raise ValueError(
            f"Expected one file for each of the modalities {', '.join(modalities)}, whose names end so; got "
            f"{some([path.name for path in paths])}. Name all of them in one line or item of the list."
        )
    return tuple(fitting[0] for fitting in found)


def beginning_of(name: str, modality: str, synonyms: Mapping[str, Sequence[str]]) -> str | None:
    """What stands before the modality in a file's name, nothing included; None if that is not its modality."""
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
    """What a layout says of a case; without any of the modalities its folder stands for the image."""
    images = tuple(case.found[name][0] for name in modalities if name in case.found) or (case.folder,)
    return Entry(UNSPLIT, images, label, mask, patient=patient, named=named_after(case), problem=problem)


def named_after(case: Case) -> Path:
    """A path, which need not exist, that names a case."""
    return case.folder if case.name == case.folder.name else case.folder / case.name


def missing_in(case: Case, modalities: Sequence[str]) -> str:
    """What keeps a case from being stacked from the modalities; nothing if it can."""
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
    """The names of a case's files, for an error."""
    return some(sorted(path.name for paths in (*case.found.values(), case.others) for path in paths), 10)

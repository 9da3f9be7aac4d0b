"""Volumes in NIfTI, NRRD or MetaImage: BraTS, BIDS and plain folders, with several modalities as channels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from aeflow_monai.data.datalist.entries import UNSPLIT, Entry, Request
from aeflow_monai.data.datalist.image_files import VOLUME_EXTENSIONS, is_volume, some, stem, subfolders, volumes_below

# File name endings of one modality: as of BraTS 2018-2021, as of BraTS 2023, and as others write them.
_BRATS = {"flair": ("t2f",), "t1": ("t1n",), "t1ce": ("t1c", "t1gd"), "t2": ("t2w",), "seg": ()}
_BRATS_VISIT = re.compile(r"(BraTS-\w+-\d+)-\d{3}")  # since 2023 a case is a patient's number and a visit's
_BIDS_MASKS = ("mask", "roi", "dseg")
_NO_LESION = re.compile(r"brain|tissue|gm|wm|csf|aseg|aparc", re.IGNORECASE)
_LESION = re.compile(r"lesion|tumou?r|stroke", re.IGNORECASE)

BRATS_REMEDY = "Expected <case>/<case>_flair.nii.gz (t1, t1ce, t2) and <case>/<case>_seg.nii.gz below it."
BIDS_REMEDY = "Expected sub-<name>/anat/sub-<name>_T1w.nii.gz or sub-<name>/ses-<name>/anat/ below it."
FOLDER_REMEDY = f"Expected volumes in it or below, with one of {', '.join(VOLUME_EXTENSIONS)}."


class _Case(NamedTuple):
    """Files of one folder whose names have one beginning."""

    folder: Path
    name: str
    found: dict[str, list[Path]]  # by modality
    others: list[Path]


def has_brats(root: Path) -> bool:
    """Whether there is a `<case>/<case>_<modality>` at the first or second level."""
    children = subfolders(root)
    folders = [*children, *(grandchild for child in children for grandchild in subfolders(child))]
    return any(
        _beginning(stem(path), name, _BRATS) == folder.name
        for folder in folders
        for path in folder.iterdir()
        if is_volume(path)
        for name in _BRATS
        if name != "seg"
    )


def read_brats(root: Path, request: Request) -> list[Entry]:
    """One case a folder; each has a tumour, so no mask has to be read to know its label."""
    modalities = request.modalities or ("flair",)
    entries = []
    for case in _cases(root, volumes_below(root), modalities, _BRATS):
        masks = [path for path in case.others if _beginning(stem(path), "seg", _BRATS) is not None]
        problem = _missing(case, modalities)
        if not problem and request.masks and len(masks) != 1:
            problem = (
                f"The case {case.name} in {case.folder} has {len(masks) or 'no'} mask {case.name}_seg.nii.gz; found: "
                f"{_names(case)}. Add it there, or correct its name."
            )
        mask = masks[0] if len(masks) == 1 else None
        visit = _BRATS_VISIT.fullmatch(case.name)
        entries.append(_entry(case, modalities, problem, label=1, mask=mask, patient=visit[1] if visit else ""))
    return entries


def has_bids(root: Path) -> bool:
    """Whether subjects have a folder anat."""
    return any(path.is_dir() for pattern in _bids_folders() for path in root.glob(pattern))


def read_bids(root: Path, request: Request) -> list[Entry]:
    """Anatomical images by subject and session; one without a mask is normal."""
    modalities = request.modalities or ("T1w",)
    folders = sorted({path for pattern in _bids_folders() for path in root.glob(pattern)}, key=Path.as_posix)
    images = [path for folder in folders for path in volumes_below(folder) if not _is_bids_mask(path)]
    masks = defaultdict(list)
    for path in volumes_below(root):
        if _is_bids_mask(path) and not _NO_LESION.search(_kind(path)):
            masks[_visit(path)].append(path)
    entries = []
    for case in _cases(root, images, modalities, {}):
        problem = _missing(case, modalities)
        image = next((path for paths in case.found.values() for path in paths), None)
        fitting = masks[_visit(image)] if image else []
        fitting = [path for path in fitting if _LESION.search(_kind(path))] or fitting
        if not problem and len(fitting) > 1:
            problem = (
                f"The case {case.name} in {case.folder} has {len(fitting)} masks: {some(fitting)}. Keep one, or list "
                "the images with their masks in a manifest.csv."
            )
        mask = fitting[0] if len(fitting) == 1 else None
        subject = case.folder.relative_to(root).parts[0]
        label = 0 if not fitting else 1 if problem else None
        entries.append(_entry(case, modalities, problem, label=label, mask=mask, patient=subject))
    return entries


def has_volumes(root: Path) -> bool:
    """Whether volumes lie in the folder itself."""
    return any(path.parent == root for path in volumes_below(root))


def read_folder(root: Path, request: Request) -> list[Entry]:
    """All volumes, taken as normal; the first folder, or a name that begins with sub-, tells the patient."""
    files = volumes_below(root)
    if not request.modalities:
        return [Entry(UNSPLIT, (path,), 0, patient=_patient(path, root)) for path in files]
    return [
        _entry(case, request.modalities, _missing(case, request.modalities), 0, None, _patient(_named(case), root))
        for case in _cases(root, files, request.modalities, {})
    ]


def _cases(
    root: Path, files: Sequence[Path], modalities: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> list[_Case]:
    """Files grouped by folder and by what their names have before the modality, those without any modality too."""
    folders = defaultdict(list)
    for path in files:
        folders[path.parent].append(path)
    cases = []
    for folder, paths in folders.items():
        found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        others = []
        for path in paths:
            begun = {name: _beginning(stem(path), name, synonyms) for name in modalities}
            for name, beginning in begun.items():
                if beginning is not None:
                    found[beginning][name].append(path)
            if all(beginning is None for beginning in begun.values()):
                others.append(path)
        claimed = defaultdict(list)
        for path in others:
            owner = max((b for b in found if _begins(stem(path), b)), key=len, default=None)
            if owner is None and folder != root and folder.name in found:
                owner = folder.name  # a file with a name of its own in the folder of one case
            elif owner is None:
                owner = re.split(r"[_-](?=[^_-]*$)", stem(path))[0]
                owner = "" if owner == stem(path) and folder != root else owner
            claimed[owner].append(path)
        for beginning in sorted({*found, *claimed}):
            case_found = {name: found[beginning][name] for name in modalities if found[beginning][name]}
            cases.append(_Case(folder, beginning or folder.name, case_found, claimed[beginning]))
    return cases


def _beginning(name: str, modality: str, synonyms: Mapping[str, Sequence[str]]) -> str | None:
    """What stands before the modality in a file's name, nothing included; None if that is not its modality."""
    for ending in (modality, *synonyms.get(modality, ())):
        if name.lower() == ending.lower():
            return ""
        if name.lower().endswith(tuple(f"{sign}{ending.lower()}" for sign in "_-.")):
            return name[: -len(ending) - 1]
    return None


def _begins(name: str, beginning: str) -> bool:
    return name == beginning or not beginning or name.startswith(tuple(f"{beginning}{sign}" for sign in "_-."))


def _entry(
    case: _Case, modalities: Sequence[str], problem: str, label: int | None, mask: Path | None, patient: str
) -> Entry:
    images = tuple(case.found[name][0] for name in modalities if name in case.found) or (case.folder,)
    return Entry(UNSPLIT, images, label, mask, patient=patient, named=_named(case), problem=problem)


def _named(case: _Case) -> Path:
    return case.folder if case.name == case.folder.name else case.folder / case.name


def _missing(case: _Case, modalities: Sequence[str]) -> str:
    """What keeps a case from being stacked from the modalities; nothing if it can."""
    asked = f"asked for {', '.join(modalities)}; found: {_names(case)}"
    if missing := [name for name in modalities if name not in case.found]:
        return (
            f"The case {case.name} in {case.folder} lacks the modality {', '.join(missing)}; {asked}. Add the file, or "
            "ask for other modalities with --modalities."
        )
    if twice := [name for name in modalities if len(case.found[name]) > 1]:
        return (
            f"The case {case.name} in {case.folder} has several files of the modality {', '.join(twice)}; {asked}. "
            "Keep one of them."
        )
    return ""


def _names(case: _Case) -> str:
    return some(sorted(path.name for paths in (*case.found.values(), case.others) for path in paths), 10)


def _bids_folders() -> tuple[str, ...]:
    return "sub-*/anat", "sub-*/ses-*/anat"


def _is_bids_mask(path: Path) -> bool:
    return path.name.startswith("sub-") and stem(path).rpartition("_")[2] in _BIDS_MASKS


def _kind(path: Path) -> str:
    """A BIDS name without subject and session, whose own names say nothing of what is on the image."""
    return re.sub(r"(sub|ses)-[^_]+_?", "", path.name)


def _visit(path: Path) -> tuple[str, str, str]:
    """Subject, session and space of a BIDS name."""
    entities = dict(part.split("-", 1) for part in path.name.split(".")[0].split("_") if "-" in part)
    return f"sub-{entities.get('sub', '')}", entities.get("ses", ""), entities.get("space", "")


def _patient(path: Path, root: Path) -> str:
    if subject := re.match(r"sub-[A-Za-z0-9]+", path.name):
        return subject[0]
    inner = path.relative_to(root).parts
    return inner[0] if len(inner) > 1 else ""

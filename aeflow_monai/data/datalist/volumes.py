"""BraTS and plain folders of volumes, with several modalities as channels, or of 2D images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from aeflow_monai.data.datalist.bids import Claim, claims, lesion_masks
from aeflow_monai.data.datalist.bids_names import parse
from aeflow_monai.data.datalist.entries import UNSPLIT, Entry, Request
from aeflow_monai.data.datalist.found_images import (
    images_below,
    is_mask_of,
    pictures_below,
    unread_below,
    volumes_below,
)
from aeflow_monai.data.datalist.image_files import VOLUME_EXTENSIONS, is_image, is_volume, stem, subfolders
from aeflow_monai.data.datalist.mask_names import masks_beside, names_anatomy, several_masks
from aeflow_monai.data.datalist.modalities import (
    BRATS,
    beginning_of,
    cases_of,
    entry_of,
    files_found,
    missing_in,
    named_after,
)
from aeflow_monai.data.datalist.walking import children
from aeflow_monai.marks import has_mark

_BRATS_VISIT = re.compile(r"(BraTS-\w+-\d+)-\d{3}")  # since 2023 a case name is the patient's number and the visit's

_SEG = re.compile(r"(?:^|[ _.-])seg(?:$|[ _.-])", re.IGNORECASE)

BRATS_REMEDY = "Expected <case>/<case>_flair.nii.gz (t1, t1ce, t2) and <case>/<case>_seg.nii.gz below it."
FOLDER_REMEDY = (
    f"Expected volumes in it or below, with one of {', '.join(VOLUME_EXTENSIONS)}; where there are none, 2D images."
)


def has_brats(root: Path) -> bool:
    """Whether the first or second level holds a `<case>/<case>_<modality>`."""
    first = subfolders(root)
    folders = [*first, *(second for folder in first for second in subfolders(folder))]
    return any(
        beginning_of(stem(path), name, BRATS) == folder.name
        for folder in folders
        for path in children(folder)
        if is_volume(path)
        for name in BRATS
        if name != "seg"
    )


def read_brats(root: Path, request: Request) -> list[Entry]:
    """Return one case per folder; all have a tumour, so labels are known without reading a mask."""
    modalities = request.modalities or ("flair",)
    entries = []
    for case in cases_of(root, volumes_below(root), modalities, BRATS):
        masks = [path for path in case.others if beginning_of(stem(path), "seg", BRATS) is not None]
        further = [path for path in case.others if _SEG.search(stem(path)) and not names_anatomy(path)]
        problem = missing_in(case, modalities)
        if not problem and request.masks and masks and len({*masks, *further}) > 1:
            problem = several_masks(case.folder / case.name, sorted({*masks, *further}))
        elif not problem and request.masks and not masks:
            problem = (
                f"The case {case.name} in {case.folder} has no mask {case.name}_seg.nii.gz; found: "
                f"{files_found(case)}. Add it there, or correct its name."
            )
        mask = masks[0] if len(masks) == 1 else None
        visit = _BRATS_VISIT.fullmatch(case.name)
        entries.append(entry_of(case, modalities, problem, label=1, mask=mask, patient=visit[1] if visit else ""))
    return entries


def has_images(root: Path) -> bool:
    """Whether volumes lie directly in the folder, or 2D images only there, since subfolders of those may be classes."""
    files = [path for path in children(root) if is_image(path) and path.is_file() and not has_mark(path)]
    if any(is_volume(path) for path in files):
        return True
    return bool(files) and all(path.parent == root or is_mask_of(path, root) for path in images_below(root))


def read_folder(root: Path, request: Request) -> list[Entry]:
    """Return all volumes, normal unless a mask beside them marks a lesion, or all 2D images if there are no volumes.

    The first folder below the root, or the prefix `sub-<name>` of a file, names the patient.
    """
    known = volumes_below(root) or pictures_below(root)
    files = [path for path in known if not is_mask_of(path, root)]
    if request.modalities:
        cases = cases_of(root, files, request.modalities, {})
        problems = [missing_in(case, request.modalities) for case in cases]
        entries = [
            entry_of(case, request.modalities, problem, 0, None, _patient(named_after(case), root))
            for case, problem in zip(cases, problems, strict=True)
        ]
    else:
        entries = [Entry(UNSPLIT, (path,), 0, patient=_patient(path, root)) for path in files]
    if not request.masks:
        return entries
    found = _claims([path for entry in entries for path in entry.images], [*known, *unread_below(root)], root, request)
    return [_claimed(entry, found) for entry in entries]


def _claims(images: Sequence[Path], known: Sequence[Path], root: Path, request: Request) -> dict[Path, Claim]:
    """Match lesion masks to images by BIDS entities where both have them, else by their names."""
    masks = [path for path in known if is_mask_of(path, root)]
    by_entities = [path for path in masks if "sub" in parse(path).entities]
    beside = masks_beside(images, sorted({*masks} - {*by_entities}), root)
    found = {}
    for image, own in beside.items():
        lesions = [path for path in own if not names_anatomy(path)]
        if len(lesions) == 1:
            found[image] = Claim(lesions[0])
        elif lesions:
            found[image] = Claim(problem=several_masks(image, lesions))
    named = [image for image in images if "sub" in parse(image).entities]
    return found | claims(named, lesion_masks(by_entities, root), request.modalities)


def _claimed(entry: Entry, found: Mapping[Path, Claim]) -> Entry:
    claim = next((found[path] for path in entry.images if path in found), None)
    if claim is None:
        return entry
    if entry.problem:
        return entry._replace(label=1)
    return entry._replace(label=claim.label, mask=claim.mask, problem=claim.problem)


def _patient(path: Path, root: Path) -> str:
    if subject := re.match(r"sub-[A-Za-z0-9]+", path.name):
        return subject[0]
    inner = path.relative_to(root).parts
    return inner[0] if len(inner) > 1 else ""

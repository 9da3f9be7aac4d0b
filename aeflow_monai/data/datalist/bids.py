"""BIDS: the anatomical images of each subject and session, and their lesion masks, wherever these are stored."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from aeflow_monai.data.datalist.bids_names import (
    BidsName,
    belongs,
    is_bids_mask,
    is_called_as_image,
    is_of_anatomy,
    parse,
    says_lesion,
)
from aeflow_monai.data.datalist.entries import Entry, Request
from aeflow_monai.data.datalist.found_images import unread_below, volumes_below
from aeflow_monai.data.datalist.mask_names import several_masks
from aeflow_monai.data.datalist.modalities import cases_of, entry_of, missing_in
from aeflow_monai.printable import shown, some

__all__ = ["BIDS_REMEDY", "Claim", "claims", "has_bids", "lesion_masks", "read_bids"]

_logger = logging.getLogger(__name__)

BIDS_REMEDY = "Expected sub-<name>/anat/sub-<name>_T1w.nii.gz or sub-<name>/ses-<name>/anat/ below it."
_FOLDERS = ("sub-*/anat", "sub-*/ses-*/anat")
_ROOTS = ("", "rawdata")
_PARTS = ("phase", "real", "imag")  # parts of a complex image that show no anatomy


class Claim(NamedTuple):
    """The lesion mask of an image, or the reason why none could be assigned although its subject has masks."""

    mask: Path | None = None
    problem: str = ""

    @property
    def label(self) -> int | None:
        """0 without a mask, 1 with a problem, None if the mask has to be read."""
        return None if self.mask else int(bool(self.problem))


def has_bids(root: Path) -> bool:
    """Whether at least one subject has a folder `anat`."""
    return any(path.is_dir() for base in _ROOTS for pattern in _FOLDERS for path in (root / base).glob(pattern))


def read_bids(root: Path, request: Request) -> list[Entry]:
    """Return the anatomical images of each subject and session; a subject without lesion masks is normal."""
    modalities = request.modalities or ("T1w",)
    volumes = volumes_below(root)
    images = [path for path in volumes if _is_anatomical(path, root) and not is_bids_mask(path, root)]
    images = [path for path in images if parse(path).entities.get("part") not in _PARTS]
    cases = cases_of(root, images, modalities, {})
    known = {next(iter(case.found.values()))[0]: case for case in cases if case.found}
    if request.masks:
        _refuse_masks_beside(root, images)
    found = (
        claims(list(known), lesion_masks([*volumes, *unread_below(root)], root), modalities) if request.masks else {}
    )
    entries = []
    for case in cases:
        claim = found.get(next((paths[0] for paths in case.found.values()), case.folder), Claim())
        problem = missing_in(case, modalities)
        subject = parse(case.folder / case.name).entities.get("sub", case.folder.relative_to(root).parts[0])
        label = int(claim != Claim()) if problem else claim.label
        mask = None if problem else claim.mask
        patient = f"sub-{subject.removeprefix('sub-')}"
        entries.append(entry_of(case, modalities, problem or claim.problem, label, mask, patient))
    return entries


def _refuse_masks_beside(root: Path, images: Sequence[Path]) -> None:
    """Refuse a root whose lesion masks lie in `derivatives` beside it, for example `rawdata`: they would be missed."""
    beside = root.parent / "derivatives"
    if root.name == beside.name or not beside.is_dir():
        return
    subjects = {parse(path).entities.get("sub", "") for path in images}
    masks = lesion_masks([*volumes_below(beside), *unread_below(beside)], beside)
    if outside := [path for path in masks if parse(path).entities.get("sub", "") in subjects]:
        raise ValueError(
            f"Expected the lesion masks of {shown(root)} below it; got {len(outside)} of its subjects beside it: "
            f"{some(outside)}. Give {shown(root.parent)}, which holds both, with --dataset_dir, or list the images "
            "in a manifest.csv."
        )


def lesion_masks(volumes: Sequence[Path], root: Path) -> list[Path]:
    """Return the volumes whose BIDS names mark them as lesion masks, without masks of brain, tissue or parcels.

    A file with the suffix of an image is not a mask if a file that is clearly a mask lies in the same folder.
    """
    masks = [path for path in volumes if is_bids_mask(path, root) and not is_of_anatomy(path, parse(path))]
    beside = {path.parent for path in masks if not is_called_as_image(parse(path))}
    return [path for path in masks if not (is_called_as_image(parse(path)) and path.parent in beside)]


def claims(images: Sequence[Path], masks: Sequence[Path], modalities: Sequence[str]) -> dict[Path, Claim]:
    """Return the claim of each image whose subject has lesion masks.

    A mask belongs to the image of the same subject, session, run and space that shares most of its other entities. An
    image without a mask is not taken for normal if its subject and session has one, or has one that matches no image.

    Args:
        images: one image of each case.
        masks: lesion masks.
        modalities: suffixes of the images of a case; if empty, each image's own suffix.
    """
    subjects: Mapping[str, list[Path]] = defaultdict(list)
    for image in images:
        subjects[parse(image).entities.get("sub", "")].append(image)
    masks_of = defaultdict(list)
    for mask in masks:
        masks_of[parse(mask).entities.get("sub", "")].append(mask)
    found: dict[Path, Claim] = {}
    elsewhere: list[Path] = []
    for subject, own in subjects.items():
        if subject and masks_of[subject]:
            claimed = _claims_of_subject(own, masks_of[subject], modalities)
            found |= claimed
            elsewhere += [image for image in own if image not in claimed]
    if elsewhere:
        _logger.warning(
            f"{len(elsewhere)} images count as normal, although other sessions of their subjects have lesion masks: "
            f"{some(elsewhere)}. If they show lesions too, list the images in a manifest.csv."
        )
    return found


def _claims_of_subject(images: Sequence[Path], masks: Sequence[Path], modalities: Sequence[str]) -> dict[Path, Claim]:
    names = {path: parse(path) for path in (*images, *masks)}
    owned: dict[Path, list[Path]] = defaultdict(list)
    unclear: dict[Path, list[Path]] = defaultdict(list)
    stray = []
    for mask in masks:
        scores = {image: belongs(names[mask], names[image], modalities) for image in images}
        best = max((score for score in scores.values() if score is not None), default=None)
        owners = [image for image, score in scores.items() if score is not None and score == best]
        # images of one run that differ in suffix, such as T1w and FLAIR, share their masks
        sure = len({names[image].suffix for image in owners}) == len(owners)
        for image in owners:
            (owned if sure else unclear)[image].append(mask)
        if not owners:
            stray.append(mask)
    found = {}
    for image in images:
        own = [mask for mask in owned[image] if says_lesion(names[mask])] or owned[image]
        near = [mask for mask in masks if _same_session(names[mask], names[image])]
        if unclear[image]:
            found[image] = Claim(problem=_unclear(image, unclear[image]))
        elif len(own) > 1:
            found[image] = Claim(problem=several_masks(image, own))
        elif own:
            found[image] = Claim(own[0])
        elif near or stray:
            found[image] = Claim(problem=_without(image, near or stray))
    return found


def _same_session(mask: BidsName, image: BidsName) -> bool:
    sessions = {name.entities.get("ses") for name in (mask, image)}
    return len(sessions - {None}) < 2


_REMEDY = "or list the images with their masks in a manifest.csv."


def _unclear(image: Path, masks: Sequence[Path]) -> str:
    return (
        f"{shown(image)} may have the lesions of {some(masks)}, which fits several images of the subject. Name "
        f"the mask with the entities of its image (ses, run, acq), {_REMEDY}"
    )


def _without(image: Path, masks: Sequence[Path]) -> str:
    return (
        f"{shown(image)} has no lesion mask that fits its name, but its subject has lesion masks: {some(masks)}. "
        f"It is not taken for normal. Name the mask with the entities of its image (ses, run, acq, space), {_REMEDY}"
    )


def _is_anatomical(path: Path, root: Path) -> bool:
    """Whether an image lies in or below `sub-*/[ses-*/]anat`."""
    parts = path.relative_to(root).parts[:-1]
    parts = parts[1:] if parts and parts[0] in _ROOTS else parts
    if not parts or not parts[0].startswith("sub-"):
        return False
    return parts[1:2] == ("anat",) or (len(parts) > 2 and parts[1].startswith("ses-") and parts[2] == "anat")

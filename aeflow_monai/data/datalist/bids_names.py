"""Parsing of BIDS names (entities such as `ses-1`, a suffix such as `T1w`), and matching of masks to images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from aeflow_monai.data.datalist.image_files import is_mask_folder, stem
from aeflow_monai.data.datalist.mask_names import ANATOMY

__all__ = ["BidsName", "belongs", "is_bids_mask", "is_called_as_image", "is_of_anatomy", "parse", "says_lesion"]

_MASK_SUFFIX = re.compile(
    r".*(?:mask|seg|roi|lesions?|labels?|segmentation|tumou?r|truth|annotations?)\d*", re.IGNORECASE
)
_LESION = re.compile(r"lesion|tumou?r|stroke|infarct|bleed|ha?emorrhage|wmh|abnormal|patholog", re.IGNORECASE)
_LESION_FOLDER = re.compile(rf"(?:{_LESION.pattern})s?(?:[ _-]?(?:manual|hand|traced|drawn)\w*)?", re.IGNORECASE)
_NATIVE = {"orig", "native", "individual", "scanner", "anat", "subject"}  # values of `space` that mean the image's own
_OF_ITSELF = ("label", "desc", "seg", "atlas", "hemi", "res", "den", "mod", "from", "rater")  # of the mask itself
_STRICT = ("ses", "run")  # an image without these entities is another image
_COUNTED = ("run", "echo", "inv", "flip", "chunk", "split")
# Suffixes of images. Some of them also occur in the names of masks.
_IMAGES = re.compile(
    r"T1w|T2w|FLAIR|PDw?|T2starw?|T1ce|inplaneT[12]|PDT2|UNIT1|\w*map|angio|SWI|swi|dwi|bold|sbref|epi|asl|m0scan|"
    r"MP2RAGE|MEGRE|MESE|FLASH|IRT1|pet|ct|phase\w*|magnitude\w*|fieldmap"
)
# Masks and segmentations of these programs show tissue unless their names mention a lesion.
_ANATOMICAL = {
    *(
        "fmriprep",
        "smriprep",
        "freesurfer",
        "fastsurfer",
        "mriqc",
        "qsiprep",
        "aslprep",
        "nibabies",
        "infantfreesurfer",
    ),
    *("synthseg", "synthstrip", "hdbet", "cat12", "xcp_d", "xcpd", "petprep", "micapipe", "samseg", "pydeface"),
}


class BidsName(NamedTuple):
    """The parts of a BIDS file name; subject and session come from the folders where the name lacks them."""

    entities: Mapping[str, str]
    suffix: str
    words: tuple[str, ...]  # between the entities and the suffix, as in sub-1_FLAIR_roi


def parse(path: Path) -> BidsName:
    """Parse the entities and the suffix of a file name.

    Example:
        >>> name = parse(Path("sub-01_run-02_label-WMH_mask.nii.gz"))
        >>> dict(name.entities), name.suffix
        ({'sub': '01', 'run': '2', 'label': 'WMH'}, 'mask')
    """
    entities = {}
    for part in path.parts[:-1]:
        key, _, value = part.partition("-")
        if key in ("sub", "ses") and value:
            entities[key] = value
            if key == "sub":
                entities.pop("ses", None)
    *parts, last = stem(path).split("_")
    suffix = "" if "-" in last else last
    words = []
    own: dict[str, str] = {}
    for part in parts if suffix else [*parts, last]:
        key, sign, value = part.partition("-")
        if sign:
            own[key] = (value.lstrip("0") or "0") if key in _COUNTED and value.isdigit() else value
        else:
            words.append(part)
    if "sub" in own and own["sub"] != entities.get("sub"):
        entities.pop("ses", None)
    return BidsName({**entities, **own}, suffix, tuple(words))


def is_bids_mask(path: Path, root: Path) -> bool:
    """Whether a file is a mask or segmentation.

    A mask is recognised by its suffix, by an entity such as `label-WMH`, `lesion-manual` or `T1w-lesion`, or by a
    folder such as `masks` or `lesions`. A file without the suffix of an image is also a mask if its name or a folder
    mentions lesions.
    """
    name = parse(path)
    if _MASK_SUFFIX.fullmatch(name.suffix) or any(_is_of_mask(*entity) for entity in name.entities.items()):
        return True
    inner = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    folders = [part for part in inner if not part.startswith(("sub-", "ses-"))]
    if is_called_as_image(name) and {"desc", "space"} & name.entities.keys():
        return False  # a processed version of the image
    if any(is_mask_folder(part) or _LESION_FOLDER.fullmatch(part) for part in folders):
        return True
    told = any(map(_LESION.search, folders))
    return not is_called_as_image(name) and (told or says_lesion(name))


def is_called_as_image(name: BidsName) -> bool:
    """Whether a file has the suffix of an image."""
    return bool(_IMAGES.fullmatch(name.suffix))


def _is_of_mask(key: str, value: str) -> bool:
    """Whether only masks have an entity."""
    told = _MASK_SUFFIX.fullmatch(key) or _LESION.fullmatch(key.removesuffix("s"))
    return bool(told or (_IMAGES.fullmatch(key) and (_LESION.search(value) or _MASK_SUFFIX.fullmatch(value))))


def is_of_anatomy(path: Path, name: BidsName) -> bool:
    """Whether a mask shows brain, tissue or parcels, judged by its entities or the program that wrote it."""
    values = [name.entities[key] for key in ("label", "desc") if key in name.entities]
    if says_lesion(name):
        return False
    if any(value.lower() in ANATOMY for value in values) or name.suffix.lower() in ("defacemask", "brainmask"):
        return True
    if {"atlas", "seg"} & name.entities.keys():
        return True
    made_by = {re.split(r"[-.]", part.lower())[0] for part in path.parts}
    return not values and bool(made_by & _ANATOMICAL)


def says_lesion(name: BidsName) -> bool:
    """Whether an entity, the suffix or a word in the name of a mask indicates lesions."""
    values = [
        value
        for key, value in name.entities.items()
        if key in ("label", "desc", "mask", "seg", "atlas") or _IMAGES.fullmatch(key)
    ]
    return any(map(_LESION.search, (*values, *name.entities, name.suffix, *name.words)))


def belongs(mask: BidsName, image: BidsName, suffixes: Sequence[str]) -> int | None:
    """Return how many entities a mask shares with an image, or None if it belongs to another image.

    Args:
        mask: name of the mask.
        image: name of the image.
        suffixes: suffixes of the image, one for each modality.
    """
    if mask.entities.get("sub") != image.entities.get("sub"):
        return None
    known = {suffix.lower() for suffix in (*suffixes, image.suffix)}
    other = [*(word for word in mask.words if _IMAGES.fullmatch(word)), *filter(None, [mask.entities.get("mod")])]
    if other and not {word.lower() for word in other} & known:
        return None
    shared = 0
    for key, value in mask.entities.items():
        if key in _OF_ITSELF:
            continue
        if key == "space":
            own = image.entities.get("space")
            native = value.lower() in _NATIVE | known
            if own != value and not (own is None and native) and not (own in _NATIVE and native):
                return None
            continue
        if key in image.entities:
            if image.entities[key] != value:
                return None
            shared += 1
        elif key in _STRICT:
            return None
    if "space" in image.entities and "space" not in mask.entities and image.entities["space"].lower() not in _NATIVE:
        return None
    return shared

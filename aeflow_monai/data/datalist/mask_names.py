"""Masks are known by their names, and belong to the image whose name they carry."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from aeflow_monai.data.datalist.image_files import EXTENSIONS, is_mask_folder, stem
from aeflow_monai.printable import shown, some

__all__ = [
    "beginnings",
    "in_mask_folder",
    "is_mask_beside",
    "is_mask_name",
    "masks_beside",
    "named_image",
    "names_anatomy",
    "several_masks",
]

_WORDS = (
    r"(?:masks?|dseg|probseg|segm?|segmentations?|labels?|labelmap|lesions?|roi|rois|truth|gt|ground[ _-]?truth|gold|"
    r"annotations?)"
)
# At the end of a name, as a word of its own; several masks of an image are counted.
_MASK = re.compile(rf"(?P<image>.*?)(?:(?:^|[ _.-]){_WORDS}|[a-z]mask)(?:[ _.-]?\(?\d{{1,2}}\)?)?", re.IGNORECASE)
# Names that are a mask's only beside the image that they name: images may be called so too.
_BESIDE = re.compile(
    rf"(?P<image>.+?)[ _.-](?:tumou?rs?|wmhs?|strokes?|infarcts?|ha?emorrhages?|bleeds?|manual|{_WORDS}[ _.-][a-z]+)"
    rf"(?:[ _.-]?\(?\d{{1,2}}\)?)?|{_WORDS}[ _.-](?P<behind>.+)",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"(?:lesions?|labels?|roi|gold)[ _.-]?\(?\d+\)?", re.IGNORECASE)  # may be images
_WORD_ENDS = re.compile(r"[ _.-]")
# Values of BIDS and last words of other names, that tell of no lesion.
ANATOMY = frozenset(
    (
        *("brain", "wholebrain", "brainmask", "skull", "skullstrip", "skullstripped", "bet", "hdbet"),
        *("synthstrip", "head", "scalp", "bone", "skin", "tissue", "tissues", "gm"),
        *("wm", "csf", "bg", "scgm", "cgm", "cort", "cortex", "ctx"),
        *("ribbon", "ventricle", "ventricles", "vent", "hippocampus", "thalamus", "cerebellum", "brainstem"),
        *("aseg", "aparc", "aparcaseg", "aparcdkt", "aparca2009s", "dkt", "dktatlas", "synthseg"),
        *("fast", "fov", "foreground", "background", "body", "deface", "defaced", "defacing"),
        *("face", "lung", "lungs", "liver", "heart", "prostate", "wmparc", "atropos"),
        *("parenchyma", "tissueseg", "carpet", "hemi", "hemisphere", "eyes"),
    )
)


def is_mask_name(path: Path) -> bool:
    """Whether a file is named as a mask: `a_mask`, `a-seg`, `a.label`, `a_mask_1`, `mask`."""
    name = stem(path)
    return bool(_MASK.fullmatch(name)) and not _COUNTED.fullmatch(name)


def is_mask_beside(path: Path) -> bool:
    """Whether a file is named as a mask of an image beside it: `a_tumor`, `a_seg_final`, `mask_a`."""
    name = _named_beside(path)
    return bool(name) and any((path.parent / f"{name}{extension}").is_file() for extension in EXTENSIONS)


def in_mask_folder(path: Path, root: Path) -> bool:
    """Whether a folder on the way from the root to a file is named as one of masks, such as `labelsTr`."""
    inner = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    return any(map(is_mask_folder, inner))


def names_anatomy(path: Path) -> bool:
    """Whether a mask is, by the last word before its ending, one of an organ or tissue: `a_brain_mask`."""
    words = [word for word in _WORD_ENDS.split(named_image(path).lower()) if word]
    return bool(words and words[-1] in ANATOMY) or stem(path).lower().endswith("brainmask")


def masks_beside(images: Iterable[Path], masks: Sequence[Path], root: Path) -> dict[Path, list[Path]]:
    """The masks of each image that has some, by their names.

    A mask belongs to the images of its folder, or of the folder beside a folder of masks, whose names are or begin
    with its own without the ending; `mask` alone to all images of its folder, unless that is the root.
    """
    in_folder, named = defaultdict(list), defaultdict(list)
    for image in images:
        in_folder[image.parent].append(image)
        for name in beginnings(stem(image)):
            named[name].append(image)
    found = defaultdict(list)
    for mask in masks:
        name, folder = named_image(mask), mask.parent
        if folder not in in_folder and is_mask_folder(folder.name):
            name, folder = name if is_mask_name(mask) else stem(mask), folder.parent
            fitting = [image for image in named[name] if image.is_relative_to(folder)]
        elif name:
            fitting = [image for image in named[name] if image.parent == folder]
        else:
            fitting = in_folder[folder] if folder != root or len(in_folder[folder]) == 1 else []
        for image in [image for image in fitting if stem(image) == name] or fitting:
            found[image].append(mask)
    return dict(found)


def several_masks(image: Path, masks: Sequence[Path]) -> str:
    """What to do about an image with more than one mask."""
    return (
        f"{shown(image)} has {len(masks)} masks: {some(masks)}. Keep one, or list the images with their masks in a "
        "manifest.csv."
    )


def beginnings(name: str) -> list[str]:
    """A name, and what it has before each end of a word."""
    return [name, *(name[: match.start()] for match in _WORD_ENDS.finditer(name) if match.start())]


def named_image(path: Path) -> str:
    """What a mask's name has before its ending."""
    match = _MASK.fullmatch(stem(path))
    return match["image"] if match else _named_beside(path) or stem(path)


def _named_beside(path: Path) -> str:
    match = _BESIDE.fullmatch(stem(path))
    return (match["image"] or match["behind"]) if match else ""

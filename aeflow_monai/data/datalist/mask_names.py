"""Recognition of masks by their names, and matching of each mask to the image that it names."""

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
# A word of its own at the end of a name, perhaps numbered, since an image may have several masks.
_MASK = re.compile(rf"(?P<image>.*?)(?:(?:^|[ _.-]){_WORDS}|[a-z]mask)(?:[ _.-]?\(?\d{{1,2}}\)?)?", re.IGNORECASE)
# Names that mark a mask only beside the image that they name, since images may have such names too.
_BESIDE = re.compile(
    rf"(?P<image>.+?)[ _.-](?:tumou?rs?|wmhs?|strokes?|infarcts?|ha?emorrhages?|bleeds?|manual|{_WORDS}[ _.-][a-z]+)"
    rf"(?:[ _.-]?\(?\d{{1,2}}\)?)?|{_WORDS}[ _.-](?P<behind>.+)",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"(?:lesions?|labels?|roi|gold)[ _.-]?\(?\d+\)?", re.IGNORECASE)  # ambiguous: may be images
_WORD_ENDS = re.compile(r"[ _.-]")
# BIDS values and last words of other names that indicate anatomy rather than a lesion.
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
    """Whether a file has the name of a mask: `a_mask`, `a-seg`, `a.label`, `a_mask_1`, `mask`."""
    name = stem(path)
    return bool(_MASK.fullmatch(name)) and not _COUNTED.fullmatch(name)


def is_mask_beside(path: Path) -> bool:
    """Whether a file has the name of a mask of an image beside it: `a_tumor`, `a_seg_final`, `mask_a`."""
    name = _named_beside(path)
    return bool(name) and any((path.parent / f"{name}{extension}").is_file() for extension in EXTENSIONS)


def in_mask_folder(path: Path, root: Path) -> bool:
    """Whether a folder between the root and a file has the name of a mask folder, such as `labelsTr`."""
    inner = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    return any(map(is_mask_folder, inner))


def names_anatomy(path: Path) -> bool:
    """Whether the word before the mask suffix names an organ or tissue, as in `a_brain_mask`."""
    words = [word for word in _WORD_ENDS.split(named_image(path).lower()) if word]
    return bool(words and words[-1] in ANATOMY) or stem(path).lower().endswith("brainmask")


def masks_beside(images: Iterable[Path], masks: Sequence[Path], root: Path) -> dict[Path, list[Path]]:
    """Match masks to images by name, and return the masks of each image that has any.

    A mask belongs to images whose name is, or begins with, its own name without the mask suffix. These images lie in
    its folder, or beside its folder if that is a mask folder. A file called just `mask` belongs to all images of its
    folder, unless that is the root.
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
    """Return the problem of an image with more than one mask, with its remedy."""
    return (
        f"{shown(image)} has {len(masks)} masks: {some(masks)}. Keep one, or list the images with their masks in a "
        "manifest.csv."
    )


def beginnings(name: str) -> list[str]:
    """Return a name and all its prefixes that end at a word boundary."""
    return [name, *(name[: match.start()] for match in _WORD_ENDS.finditer(name) if match.start())]


def named_image(path: Path) -> str:
    """Return the image name that a mask's name contains, without the mask suffix."""
    match = _MASK.fullmatch(stem(path))
    return match["image"] if match else _named_beside(path) or stem(path)


def _named_beside(path: Path) -> str:
    match = _BESIDE.fullmatch(stem(path))
    return (match["image"] or match["behind"]) if match else ""

"""Recognition of masks by their names, and matching of each mask to the image that it names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from aeflow_monai.data.datalist.image_files import EXTENSIONS, is_mask_folder, stem
from aeflow_monai.data.datalist.naming import key_of
from aeflow_monai.data.datalist.walking import children
from aeflow_monai.printable import shown, some

__all__ = [
    "beginnings",
    "image_names",
    "is_mask_beside",
    "is_mask_name",
    "mask_folder_of",
    "masks_beside",
    "names_anatomy",
    "several_masks",
]

_WORDS = (
    r"(?:masks?|dseg|probseg|segm?|segmentations?|labels?|labelmap|lesions?|roi|rois|truth|gt|ground[ _-]?truth|gold|"
    r"annotations?)"
)
# A word of its own at the end of a name, perhaps numbered, since an image may have several masks.
_MASK = re.compile(rf"(?P<image>.*?)(?:(?:^|[ _.-]){_WORDS}|[a-z]mask)(?:[ _.-]?\(?\d{{1,2}}\)?)?", re.IGNORECASE)
_COUNTED = re.compile(r"(?:lesions?|labels?|roi|gold)[ _.-]?\(?\d+\)?", re.IGNORECASE)  # ambiguous: may be images
# Words that mark a mask only beside the image that its name contains, since images may have such words too.
_SAYS_MASK = re.compile(
    r"\w*masks?(?!ed)\w*|msk|\w*segs?|\w*segm|\w*segment(?:s|ed|ations?)?|labels?|labelmaps?|\w*lesions?|rois?|truth|"
    r"gold|gt|gtv|ctv|annot|annotations?|contours?|delineations?|outlines?",
    re.IGNORECASE,
)
# Words that do so at the end of a name.
_ENDS_MASK = re.compile(
    r"tumou?rs?|wmhs?|strokes?|infarcts?|ha?emorrhages?|bleeds?|o?edemas?|abscess(?:es)?|manual|raters?|readers?|"
    r"experts?|consensus",
    re.IGNORECASE,
)
_LESIONS = re.compile(
    r"lesions?|tumou?rs?|wmhs?|strokes?|infarcts?|ha?emorrhages?|bleeds?|o?edemas?|abscess(?:es)?", re.IGNORECASE
)
_VERSION = re.compile(r"v|r|final|edited|corrected|auto", re.IGNORECASE)  # words behind those of a mask
_LETTERS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+")  # words, also within lesionSeg and mask001
_WORD_ENDS = re.compile(r"[ _.-]")
_PARTS = re.compile(r"[ _.-]*[^ _.-]+|[ _.-]+$")
_PERHAPS_MASKS = re.compile(r"(?:.*[ _.-])?(?:segs?|gts?|rois?|contours?|labels[ _.-].*)", re.IGNORECASE)
_PERHAPS_LESIONS = re.compile(r"(?:.*[ _.-])?(?:lesions?|tumou?rs?|wmhs?|strokes?|infarcts?)", re.IGNORECASE)
_OF_IMAGES = re.compile(r"(?:images?|imgs?|scans?|volumes?|raw|flair|t1w?|t2w?|t1ce|ct|mri?)(?:tr|ts)?", re.IGNORECASE)
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
    """Whether a file has the name of a mask of an image beside it: `a_tumor`, `a_seg_final`, `mask_a`, `a_mask_001`."""
    return any(_is_image_called(name, path.parent) for name in image_names(stem(path)))


def mask_folder_of(path: Path, root: Path) -> Path | None:
    """Return the innermost folder of masks around a file, below the root, such as `labelsTr`.

    A folder such as `gt` or `lesions`, which may also be one of images, holds masks if an image of the same name lies
    beside it.
    """
    inner = [folder for folder in path.parents if folder != root and folder.is_relative_to(root)]
    return next((folder for folder in inner if is_mask_folder(folder.name) or _has_twin(path, folder)), None)


def _has_twin(path: Path, folder: Path) -> bool:
    """Whether an image of the name of a file lies beside its folder, which has a name that masks may have."""
    if not (_PERHAPS_MASKS.fullmatch(folder.name) or _PERHAPS_LESIONS.fullmatch(folder.name)):
        return False
    others = [other for other in children(folder.parent) if other.is_dir() and other != folder]
    if _PERHAPS_LESIONS.fullmatch(folder.name):  # a class of images may be called so, whose numbers others have too
        others = [other for other in others if _OF_IMAGES.fullmatch(other.name)]
    inner = path.parent.relative_to(folder)
    names = (stem(path), *image_names(stem(path)))
    return any(_is_image_called(name, other / inner) for other in others for name in names)


def _is_image_called(name: str, folder: Path) -> bool:
    return any((folder / f"{name}{extension}").is_file() for extension in EXTENSIONS)


def names_anatomy(path: Path) -> bool:
    """Whether the word before the mask's names an organ or tissue, as in `a_brain_mask`."""
    words = [word for word in _WORD_ENDS.split(stem(path)) if word]
    of_mask = [number for number, word in enumerate(words) if _says_mask(word)]
    if not of_mask:
        return False
    last, before = words[of_mask[-1]].lower(), words[of_mask[-1] - 1].lower() if of_mask[-1] else ""
    return not _LESIONS.match(last) and (before in ANATOMY or last in ANATOMY or last.endswith("brainmask"))


def masks_beside(images: Iterable[Path], masks: Sequence[Path], root: Path) -> dict[Path, list[Path]]:
    """Match masks to images by name, and return the masks of each image that has any.

    A mask belongs to the image whose name its own name contains, beside words of a mask; of several, to that of the
    longest name. If there is none, it belongs to images whose names begin with its own without the mask suffix. These
    images lie in its folder; or, for a mask in a mask folder, below the folder around that, in the same folders if
    there are several. A file called just `mask` belongs to all images of its folder, unless that is the root.
    """
    in_folder, named, begun = defaultdict(list), defaultdict(list), defaultdict(list)
    for image in images:
        in_folder[image.parent].append(image)
        named[key_of(stem(image))].append(image)
        for name in beginnings(stem(image)):
            begun[key_of(name)].append(image)
    found = defaultdict(list)
    for mask in masks:
        own, strong, folder = stem(mask), _without_suffix(stem(mask)), mask_folder_of(mask, root)
        if folder is None and strong == "":
            of_folder = in_folder[mask.parent]
            fitting = of_folder if mask.parent != root or len(of_folder) == 1 else []
        else:
            names = [*([own] if folder else []), *([strong] if strong else []), *image_names(own)]
            groups = [*(named[key_of(name)] for name in names), begun[key_of(strong or own)]]
            fitting = next(filter(None, (_in_place(group, mask, folder) for group in groups)), [])
        for image in fitting:
            found[image].append(mask)
    return dict(found)


def _in_place(images: Sequence[Path], mask: Path, folder: Path | None) -> list[Path]:
    """Return the images that lie where a mask's image may lie: in its folder, or around its mask folder."""
    if folder is None:
        return [image for image in images if image.parent == mask.parent]
    around = [image for image in images if image.is_relative_to(folder.parent)]
    inner = mask.parent.relative_to(folder).parts
    if not inner:
        return around
    same = [image for image in around if image.parent.parts[-len(inner) :] == inner]
    return same or (around if len(around) == 1 else [])


def several_masks(image: Path, masks: Sequence[Path]) -> str:
    """Return the problem of an image with more than one mask, with its remedy."""
    return (
        f"{shown(image)} has {len(masks)} masks: {some(masks)}. Keep one, or list the images with their masks in a "
        "manifest.csv."
    )


def beginnings(name: str) -> list[str]:
    """Return a name and all its prefixes that end at a word boundary."""
    return [name, *(name[: match.start()] for match in _WORD_ENDS.finditer(name) if match.start())]


def image_names(name: str) -> list[str]:
    """Return the names of images that a name contains beside words of a mask, the longest beginnings first.

    Example:
        >>> image_names("p1_tumor_seg"), image_names("mask_p1"), image_names("p1_lesion_T1"), image_names("p1_T1")
        (['p1_tumor', 'p1'], ['p1'], ['p1', 'p1_T1'], [])
    """
    if not any(_SAYS_MASK.fullmatch(word) or _ENDS_MASK.fullmatch(word) for word in _LETTERS.findall(name)):
        return []  # as of most of the files of a large folder
    ends = [match for match in _WORD_ENDS.finditer(name) if match.start()]
    found = [name[: end.start()] for end in reversed(ends) if _says_mask(name[end.end() :])]
    found += [name[end.end() :] for end in ends if end.end() < len(name) and _is_of_mask(name[: end.start()])]
    first, *others = _PARTS.findall(name) or [""]
    without = first + "".join(part for part in others if not _is_of_mask(part))
    return [*dict.fromkeys([*found, without] if without != name else found)]


def _without_suffix(name: str) -> str | None:
    """Return a name without its mask suffix; None if it has none."""
    match = _MASK.fullmatch(name)
    return match["image"] if match else None


def _says_mask(text: str) -> bool:
    """Whether a part of a name says that the file is a mask of the image that the rest names."""
    words = _LETTERS.findall(text)
    if any(map(_SAYS_MASK.fullmatch, words)):
        return True
    while words and _VERSION.fullmatch(words[-1]):
        words.pop()
    return bool(words and _ENDS_MASK.fullmatch(words[-1]))


def _is_of_mask(text: str) -> bool:
    """Whether a part of a name has words of a mask and of its version only."""
    words = _LETTERS.findall(text)
    return any(map(_SAYS_MASK.fullmatch, words)) and all(
        _SAYS_MASK.fullmatch(word) or _VERSION.fullmatch(word) for word in words
    )

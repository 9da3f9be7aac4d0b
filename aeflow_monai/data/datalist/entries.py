"""What a reader of a layout is asked, and what it says of each image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

UNSPLIT = ""  # the split of an entry whose layout divides nothing
JSON_KEYS = {"training": "train", "validation": "validation", "test": "test", "testing": "test"}  # the last is MONAI's
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def parse_split(value: str, where: str) -> str:
    """The split that a cell of a list names.

    Raises:
        ValueError: there is no such split.
    """
    if value.strip().lower() not in SPLITS:
        raise ValueError(f"{where}: split has to be one of {', '.join(SPLITS)}; got {value!r}.")
    return SPLITS[value.strip().lower()]


class Request(NamedTuple):
    """What a caller wants of a layout."""

    normal_classes: tuple[str, ...] = ("NORMAL",)
    modalities: tuple[str, ...] = ()
    labels: bool = True  # whether a table has to have split and label; without them all images are of the test
    masks: bool = True  # whether a layout that comes with masks has to have them
    series: tuple[str, ...] = ()  # of DICOM folders: numbers, identifiers or modalities; all if empty


class Entry(NamedTuple):
    """What a layout says of one image; nothing is looked up on disk yet."""

    split: str
    images: tuple[Path, ...]
    label: int | None = None
    mask: Path | None = None
    case: str = ""
    patient: str = ""
    named: Path | None = None  # what the case is called after, if not after the image
    problem: str = ""
    extra: Mapping[str, Any] = {}
    patient_id: str = ""  # in the header of a DICOM image, which is never written anywhere
    examined: bool = False  # whether a DICOM folder was looked into, and its problem stands here

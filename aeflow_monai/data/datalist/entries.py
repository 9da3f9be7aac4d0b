"""The request to a reader of a layout, and the entry that it returns for each image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

UNSPLIT = ""  # split of an entry whose layout has no splits
JSON_KEYS = {"training": "train", "validation": "validation", "test": "test", "testing": "test"}  # the last is MONAI's
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def parse_split(value: str, where: str) -> str:
    """Return the split that a cell of a list names.

    Raises:
        ValueError: there is no such split.
    """
    if value.strip().lower() not in SPLITS:
        raise ValueError(f"{where}: split has to be one of {', '.join(SPLITS)}; got {value!r}.")
    return SPLITS[value.strip().lower()]


class Request(NamedTuple):
    """What a caller asks of the reader of a layout."""

    normal_classes: tuple[str, ...] = ("NORMAL",)
    modalities: tuple[str, ...] = ()
    labels: bool = True  # whether a table needs split and label; if not, all images belong to the test split
    masks: bool = True  # whether a layout with masks has to provide them
    series: tuple[str, ...] = ()  # DICOM series to read, by number, identifier or modality; all if empty


class Entry(NamedTuple):
    """The description of one image by its layout; its files have not been checked yet."""

    split: str
    images: tuple[Path, ...]
    label: int | None = None
    mask: Path | None = None
    case: str = ""
    patient: str = ""
    named: Path | None = None  # path that names the case, if not the image's
    problem: str = ""
    extra: Mapping[str, Any] = {}
    patient_id: str = ""  # PatientID in a DICOM header, which is never written anywhere
    examined: bool = False  # whether a DICOM folder was read and `problem` holds the result

"""Notes on images and options that a training does not use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aeflow_monai.data.datalist.entries import UNSPLIT, Entry, Request
from aeflow_monai.printable import counted, shown

__all__ = ["training_notes"]


def training_notes(
    layout: str,
    source: Path,
    request: Request,
    entries: Sequence[Entry],
    items: Sequence[Mapping[str, Any]],
    test_fraction: float,
) -> dict[str, str]:
    """Return notes on unused options and images, by topic: "normal_classes", "series", "abnormal".

    Args:
        layout: name of the layout.
        source: the folder or list.
        request: the request to the reader of the layout.
        entries: all entries of the source.
        items: the items to train on.
        test_fraction: fraction of the patients held out for the test split.

    Returns:
        The notes that apply.
    """
    notes = {}
    if request.normal_classes != Request().normal_classes and layout not in ("classes", "medmnist"):
        notes["normal_classes"] = (
            f"normal_classes {', '.join(request.normal_classes)} has no effect on {shown(source)}: the layout "
            f"{layout!r} says itself what is normal. For folders of classes give --layout classes."
        )
    if request.series and source.is_dir() and not any(entry.examined for entry in entries):
        notes["series"] = (
            f"series {', '.join(request.series)} has no effect on {shown(source)}, which holds no DICOM series."
        )
    n_abnormal = sum(item.get("label") == 1 and "lesion" not in item for item in items)
    if n_abnormal and (test_fraction or all(entry.split == UNSPLIT for entry in entries)):
        remedy = "They are in no test either. A manifest.csv can put them there."
        if not test_fraction:
            remedy = "Nothing is left to test on. Hold patients out with --test_fraction 0.2, or test on other data."
        notes["abnormal"] = (
            f"Not used: {counted(n_abnormal, 'abnormal image')} among those of {shown(source)} to train on. {remedy}"
        )
    return notes

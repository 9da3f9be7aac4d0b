"""The labelled images that a model is evaluated on: none that it knows."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aeflow_monai.data.datalist import load_datalist, require_labels
from aeflow_monai.data.datalist.items import EmptySectionError
from aeflow_monai.data.datalist.unused import Datalist
from aeflow_monai.engine.duplicates import count_seen, fingerprints_of
from aeflow_monai.engine.stored_model import model_path, read_model
from aeflow_monai.printable import shown

__all__ = ["load_test"]

_logger = logging.getLogger(__name__)


def load_test(dataset_dir: str | os.PathLike[str], folder: str | Path, listing: Mapping[str, Any]) -> Datalist:
    """List the test images of a data set; all images of one without a split, such as another hospital's.

    Args:
        dataset_dir: see `load_datalist`.
        folder: of the model's bundle, which knows the images that it was trained and its thresholds were set on.
        listing: options of `load_datalist`.

    Returns:
        Items with labels.

    Raises:
        FileNotFoundError: the folder of the images does not exist.
        ValueError: see `load_datalist`; or the model knows images of a data set without a split.
    """
    try:
        items = load_datalist(dataset_dir, "test", **listing)
    except EmptySectionError as error:
        items = _all_unknown(dataset_dir, folder, listing, error)
    require_labels(items)
    return items


def _all_unknown(
    dataset_dir: str | os.PathLike[str], folder: str | Path, listing: Mapping[str, Any], refused: EmptySectionError
) -> Datalist:
    """All images of a data set without a split, where the model knows none; otherwise what was refused is."""
    try:
        items = load_datalist(dataset_dir, "unsplit", **listing)
    except EmptySectionError:
        raise refused from None
    if not any(item.get("label") for item in items):
        raise refused
    card = read_model(model_path(folder)).card
    known = [*card.get("trained_on", ()), *card.get("thresholds_on", ())]
    if n_known := count_seen(fingerprints_of(items), known):
        raise ValueError(f"{refused} The model knows {n_known} of these {len(items)} images.") from None
    _logger.info(f"{shown(dataset_dir)} has no split, and the model knows none of its images: all are tested.")
    return items

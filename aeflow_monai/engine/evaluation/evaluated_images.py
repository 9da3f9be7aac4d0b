"""Selection of labelled images that a model is evaluated on and has not seen."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aeflow_monai.data.datalist import load_datalist, require_labels
from aeflow_monai.data.datalist.items import DividedError, EmptySectionError
from aeflow_monai.data.datalist.unused import Datalist
from aeflow_monai.engine.config.stored_model import model_path, read_model
from aeflow_monai.engine.runs.duplicates import count_seen, fingerprints_for
from aeflow_monai.printable import shown

__all__ = ["load_test"]

_logger = logging.getLogger(__name__)


def load_test(dataset_dir: str | os.PathLike[str], folder: str | Path, listing: Mapping[str, Any]) -> Datalist:
    """List the test images of a data set; all images if it has no split, such as that of another hospital.

    A `test_fraction` taken over from the training splits only the training's data set.

    Args:
        dataset_dir: see `load_datalist`.
        folder: folder of the model's bundle, which knows the images of its training and calibration.
        listing: options of `load_datalist`.

    Returns:
        Items with labels.

    Raises:
        FileNotFoundError: the folder of the images does not exist.
        ValueError: see `load_datalist`; or the model has seen images of a data set without a split.
    """
    fraction, whole = listing.get("test_fraction"), {**listing, "test_fraction": 0.0}
    # read only if needed: another method that is compared with the model has no model.pt
    inherited = fraction and fraction == read_model(model_path(folder)).config.get("test_fraction")
    items = _unknown(dataset_dir, folder, whole) if inherited else None
    if items is None:
        try:
            items = load_datalist(dataset_dir, "test", **listing)
        except DividedError:
            if not inherited:
                raise
            items = load_datalist(dataset_dir, "test", **whole)
        except EmptySectionError as error:
            items = _unknown(dataset_dir, folder, listing, is_required=True)
            if items is None:
                raise error from None
    require_labels(items)
    return items


def _unknown(
    dataset_dir: str | os.PathLike[str],
    folder: str | Path,
    listing: Mapping[str, Any],
    is_required: bool = False,
) -> Datalist | None:
    """Return all images of a data set without a split, if some are abnormal and the model has seen none.

    Raises:
        ValueError: it has seen some, and `is_required`.
    """
    try:
        items = load_datalist(dataset_dir, "unsplit", **listing)
    except EmptySectionError:
        return None
    if not any(item.get("label") for item in items):
        return None
    card = read_model(model_path(folder)).card
    known = [*card.get("trained_on", ()), *card.get("thresholds_on", ())]
    n_known = 0
    for item in items:
        n_known += count_seen(fingerprints_for(card, [item]), known)
        if n_known and not is_required:
            return None
    if n_known:
        raise ValueError(
            f"{shown(dataset_dir)} has no images to test on: it has no split, and the model was trained or calibrated "
            f"on {n_known} of its {len(items)} images. Give a folder of other images, or put those that are none of "
            "these in test/<class>; or train again with --test_fraction 0.2, which divides the patients."
        ) from None
    _logger.info(f"{shown(dataset_dir)} has no split, and the model knows none of its images: all are tested.")
    return items

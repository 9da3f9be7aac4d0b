"""Splits by patient: no patient is on both sides of a split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from aeflow_monai.data.datalist.item import first_path, patient_of

__all__ = ["choose_abnormal", "normals_of", "split_normals"]


def split_normals(
    items: Iterable[Mapping[str, Any]],
    calibration_fraction: float = 0.15,
    seed: int = 0,
    *,
    lesion_free_slices: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split normal items by patient into those that the model is fitted on and those that it is calibrated on.

    All images of a patient fall on the same side. The result depends on the patients and the seed, not on their
    order. Items with a "problem" stay with their patient, or are put among those to fit, so that they are reported.

    Args:
        items: a datalist; items not labelled 0 are left out. The case stands in for a missing "patient".
        calibration_fraction: fraction of the patients to hold out, in (0, 1); each side gets at least one.
        seed: seed of the split, whole number from 0.
        lesion_free_slices: also keep abnormal items that have a mask, whose slices without lesion are normal.

    Returns:
        The items to fit and the items to calibrate, each sorted by case and path.

    Raises:
        ValueError: the fraction is out of range, or there are fewer than two patients with normal images.

    Example:
        >>> items = [{"image": f"{i}.png", "case": f"{i}", "label": i % 2} for i in range(20)]
        >>> fit, calibration = split_normals(items, 0.2)
        >>> len(fit), len(calibration)
        (8, 2)
    """
    if not 0 < calibration_fraction < 1:
        raise ValueError(f"calibration_fraction has to lie between 0 and 1, ends excluded; got {calibration_fraction}.")
    kept = normals_of(items, lesion_free_slices=lesion_free_slices)
    usable = [item for item in kept if "problem" not in item]
    patients = sorted({patient_of(item) for item in usable})
    if len(patients) < 2:
        raise ValueError(
            f"Expected at least 2 normal cases, one to fit and one to calibrate; got {patients} ({len(usable)} "
            "images). Add normal images of another case, of another patient."
        )
    chosen = draw_patients(patients, calibration_fraction, seed)
    fit = [item for item in kept if patient_of(item) not in chosen]
    return fit, [item for item in kept if patient_of(item) in chosen]


def normals_of(items: Iterable[Mapping[str, Any]], *, lesion_free_slices: bool = False) -> list[dict[str, Any]]:
    """Return the normal items of a datalist.

    Args:
        items: a datalist; items not labelled 0 are left out. Items with a "problem" stay, so that they are reported.
        lesion_free_slices: also keep abnormal items that have a mask, whose slices without lesion are normal.

    Returns:
        The items, sorted by case and path.

    Raises:
        ValueError: no item is normal and usable.
    """
    items = list(items)
    kept = [
        dict(item)
        for item in items
        if item.get("label") == 0
        or (lesion_free_slices and _has_slices(item))
        or ("problem" in item and "label" not in item)  # its label is unknown
    ]
    if all("problem" in item for item in kept):
        masks = sum("lesion" in item for item in items)
        remedy = f"set lesion_free_slices to train on those of the {masks} items with a mask; or " if masks else ""
        raise ValueError(
            f"Got a datalist without normals: none of {len(items)} items has the label 0. Normal images are needed; "
            f"{remedy}check --dataset_dir and --normal_classes."
        )
    return sorted(kept, key=lambda item: (item["case"], first_path(item)))


def choose_abnormal(
    items: Iterable[Mapping[str, Any]],
    count: int | None,
    calibration: Iterable[Mapping[str, Any]] = (),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Draw labelled abnormal images to train on, from patients that are not used for the calibration.

    A larger count includes the choice of a smaller one, so that a curve over the count only adds images.

    Args:
        items: a datalist; items not labelled 1 and items with a "problem" are left out.
        count: number of images or volumes, from 0; None for all.
        calibration: the items used for calibration; no image of their patients is chosen.
        seed: seed of the draw, whole number from 0.

    Returns:
        The items, in the order of the draw.

    Raises:
        ValueError: count is below 0, there are fewer abnormal images, or all are requested and there are none.

    Example:
        >>> items = [{"image": f"{i}.png", "case": f"{i}", "label": i % 2} for i in range(20)]
        >>> len(choose_abnormal(items, 3))
        3
        >>> choose_abnormal(items, 3) == choose_abnormal(items, 5)[:3]
        True
    """
    held_out = {patient_of(item) for item in calibration}
    abnormal = [dict(item) for item in items if item.get("label") == 1 and "problem" not in item]
    free = sorted((item for item in abnormal if patient_of(item) not in held_out), key=lambda item: str(item["image"]))
    of_calibration = len(abnormal) - len(free)
    also = f" ({of_calibration} more are of patients held out for calibration)" if of_calibration else ""
    if count is None and not free:
        raise ValueError(
            f"labelled_abnormal asks for all abnormal images of the training section, but it lists no usable image "
            f"with label 1{also}. Add some, or train without the preset semi_supervised, or set labelled_abnormal to 0."
        )
    count = len(free) if count is None else count
    if not 0 <= count <= len(free):
        raise ValueError(
            f"labelled_abnormal is {count}, but the training section lists {len(free)} usable images with label "
            f"1{also}. Give a number from 0 to {len(free)}, or null for all of them."
        )
    return [free[i] for i in np.random.default_rng(seed).permutation(len(free))[:count]]


def draw_patients(patients: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Draw a fraction of two or more sorted patients: at least one, and at least one remains."""
    count = min(max(round(fraction * len(patients)), 1), len(patients) - 1)
    return {patients[i] for i in np.random.default_rng(seed).permutation(len(patients))[:count]}


def _has_slices(item: Mapping[str, Any]) -> bool:
    return "lesion" in item or ("problem" in item and item.get("label") == 1)

"""Warnings for 2D images scored by a model of volumes, and for volumes scored by a model of 2D images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from aeflow_monai.data.datalist.item import first_path
from aeflow_monai.geometry import any_picture
from aeflow_monai.printable import some
from aeflow_monai.score.position import UNKNOWN

__all__ = ["note_on_image", "note_on_normals", "require_volumes", "saw_pictures", "saw_volumes"]

_NOTED = "score.saw_volumes"
_NORMALS = "score.dissimilarity_norm"  # of normals by plane and relative slice position
_ROUNDED = 1e-4


def saw_volumes(state: Mapping[str, Tensor]) -> bool:
    """Return whether a model was calibrated on slices of several relative positions, as volumes have them.

    Args:
        state: state dict of the detector.

    Returns:
        False for 2D images, which have a single position, and if unknown.
    """
    return _were_volumes(state) is True


def saw_pictures(state: Mapping[str, Tensor]) -> bool:
    """Return whether a model was calibrated on single slices, which 2D images are; False if unknown.

    Args:
        state: state dict of the detector.
    """
    return _were_volumes(state) is False


def _were_volumes(state: Mapping[str, Tensor]) -> bool | None:
    """Return what the calibration recorded; for earlier versions, infer it from statistics by relative position.

    None if unknown: without a calibration, with too few normals, or for a published score, which has no statistics.
    """
    noted = int(state.get(_NOTED, -1))
    if noted >= 0:
        return bool(noted)
    mean, std = (state.get(f"{_NORMALS}.{name}") for name in ("mean", "std"))
    if mean is None or std is None or mean.ndim != 4:
        return None
    is_fitted = bool((std != 1).any() or (mean != 0).any()) and not bool((std >= UNKNOWN).any())
    return bool((mean.amax(dim=1) - mean.amin(dim=1)).max() > _ROUNDED * mean.abs().max()) if is_fitted else None


def require_volumes(state: Mapping[str, Tensor], datalist: Sequence[Mapping[str, Any]]) -> None:
    """Raise an error if there are 2D images among the normals for a model that was calibrated on volumes.

    Args:
        state: state dict of the detector.
        datalist: datalist of the normals.

    Raises:
        ValueError: some are 2D images.
    """
    pictures = _pictures(datalist)
    if pictures and saw_volumes(state):
        raise ValueError(
            f"{len(pictures)} of {len(datalist)} images are 2D pictures, but the model was calibrated on volumes: "
            f"{some(pictures)}. Give volumes like those of the training, or train on pictures."
        )


def _pictures(datalist: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the files that are 2D images."""
    return [Path(first_path(item)).name for item in datalist if any_picture(first_path(item))]


def note_on_normals(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str:
    """Return a warning if a model of 2D images was calibrated on volumes.

    Args:
        before: state dict of the detector before the calibration.
        now: state dict after the calibration.

    Returns:
        A sentence; empty if there is nothing to warn of.
    """
    if not saw_pictures(before) or not saw_volumes(now):
        return ""
    return (
        "Volumes are among the normals, but the model was trained on 2D images: each slice was taken as one of them. "
        "Train on volumes to score volumes."
    )


def note_on_image(state: Mapping[str, Tensor], shape: Sequence[int], n_slices: int) -> str:
    """Return a warning for a 2D image and a model of volumes, or for a volume and a model of 2D images.

    Args:
        state: state dict of the detector.
        shape: spatial shape of the image, three numbers; a single slice has one of 1.
        n_slices: number of its slices that are scored.

    Returns:
        A sentence; empty if there is nothing to warn of.
    """
    if 1 in shape and saw_volumes(state):
        return (
            "A single slice was given, but the model was trained on volumes. It is scored as the middle slice of a "
            "volume, by thresholds of volumes. Give volumes, of a DICOM series its folder; or train on 2D images."
        )
    if n_slices > 1 and saw_pictures(state):
        return (
            "A volume was given, but the model was trained on 2D images: each of its slices is scored as one of them. "
            "Train on volumes to score volumes."
        )
    return ""

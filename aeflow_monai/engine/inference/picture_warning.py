"""Pictures for a model of volumes, and volumes for one of pictures: their scores mean less than they seem to."""

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
    """Whether a model was calibrated on slices of several relative positions, as of volumes.

    Args:
        state: of the detector.

    Returns:
        False for pictures, which have one position, and where it is not known.
    """
    return _were_volumes(state) is True


def saw_pictures(state: Mapping[str, Tensor]) -> bool:
    """Whether a model was calibrated on single slices, as 2D images are; False where it is not known.

    Args:
        state: of the detector.
    """
    return _were_volumes(state) is False


def _were_volumes(state: Mapping[str, Tensor]) -> bool | None:
    """What the calibration noted; of a model of an earlier version, whether relative positions have other normals.

    None where it is not known, as without a calibration, or of too few normals or a published score, which has none.
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
    """Refuse normals among which are pictures, if the model was calibrated on volumes.

    Args:
        state: of the detector.
        datalist: of the normals.

    Raises:
        ValueError: some are pictures.
    """
    pictures = _pictures(datalist)
    if pictures and saw_volumes(state):
        raise ValueError(
            f"{len(pictures)} of {len(datalist)} images are 2D pictures, but the model was calibrated on volumes: "
            f"{some(pictures)}. Give volumes like those of the training, or train on pictures."
        )


def _pictures(datalist: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the files that are pictures."""
    return [Path(first_path(item)).name for item in datalist if any_picture(first_path(item))]


def note_on_normals(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str:
    """Say that the normals of a calibration are volumes, if the model was calibrated on 2D images before.

    Args:
        before: state of the detector.
        now: its state after the calibration.

    Returns:
        A sentence; empty if all is well.
    """
    if not saw_pictures(before) or not saw_volumes(now):
        return ""
    return (
        "Volumes are among the normals, but the model was trained on 2D images: each slice was taken as one of them. "
        "Train on volumes to score volumes."
    )


def note_on_image(state: Mapping[str, Tensor], shape: Sequence[int], n_slices: int) -> str:
    """Say that an image is a slice, if the model was trained on volumes, or a volume, if it was on 2D images.

    Args:
        state: of the detector.
        shape: of the image in space, three numbers; one of a single slice is 1.
        n_slices: of the image that are scored.

    Returns:
        A sentence; empty if all is well.
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

"""Pictures for a model of volumes, and volumes for one of pictures: their scores mean less than they seem to."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from aeflow_monai.data.datalist.item import first_path
from aeflow_monai.engine.stored_model import model_path, read_model
from aeflow_monai.geometry import any_picture
from aeflow_monai.printable import some

__all__ = ["saw_pictures", "saw_volumes", "warn_of_pictures"]

_logger = logging.getLogger(__name__)

_NORMALS = "score.dissimilarity_norm.mean"  # of normals by plane and relative slice position
_ROUNDED = 1e-4


def saw_volumes(state: Mapping[str, Tensor]) -> bool:
    """Whether a model was calibrated on slices of several relative positions, as of volumes.

    Args:
        state: of the detector.

    Returns:
        False for pictures, which have one position, and where it is not known.
    """
    return _is_same_everywhere(state) is False


def saw_pictures(state: Mapping[str, Tensor]) -> bool:
    """Whether a model was calibrated on single slices, as 2D images are; False where it is not known.

    Args:
        state: of the detector.
    """
    return _is_same_everywhere(state) is True


def _is_same_everywhere(state: Mapping[str, Tensor]) -> bool | None:
    """Whether all relative positions have the same normals; None where it is not known."""
    mean = state.get(_NORMALS)
    if mean is None or mean.ndim != 4:
        return None
    return bool((mean.amax(dim=1) - mean.amin(dim=1)).max() <= _ROUNDED * mean.abs().max())


def warn_of_pictures(bundle: str | Path, datalist: Sequence[Mapping[str, Any]]) -> None:
    """Say which images are pictures, if the model was trained on volumes.

    Args:
        bundle: folder of the model.
        datalist: of the run.
    """
    paths = [first_path(item) for item in datalist if "image" in item]
    pictures = [path for path in paths if any_picture(path)]
    if pictures and saw_volumes(read_model(model_path(bundle)).state):
        _logger.warning(
            f"{len(pictures)} of {len(paths)} images are 2D pictures, but the model was trained on volumes: "
            f"{some(pictures)}. Each is scored as the middle slice of a volume, by thresholds of "
            "volumes. Train on pictures to score pictures."
        )

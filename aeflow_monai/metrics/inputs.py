"""Validation of the inputs of voxel and lesion metrics: maps, masks and regions of a volume or an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

Bools = npt.NDArray[np.bool_]
Map = npt.NDArray[np.float32]


def read_inputs(anomaly_map: Any, mask: Any, region: Any | None) -> tuple[Map, Bools, Bools | None]:
    """Return the validated map, lesions and region, of equal shape (H, W[, D])."""
    array = _array(anomaly_map, "anomaly_map")
    with np.errstate(over="ignore"):  # values beyond the range of float32 raise an error below
        values: Map = array.astype(np.float32, copy=False)
    finite = np.isfinite(values)
    if not finite.all():
        first = tuple(int(i) for i in np.unravel_index(int(finite.argmin()), values.shape))
        raise ValueError(
            f"anomaly_map has to be finite in float32, got {int((~finite).sum())} of {values.size} voxels that are NaN "
            f"or infinite, the first ({values[first]}) at {first}: mend the map, or set them to its lowest value."
        )
    return (
        values,
        _boolean(mask, "mask", values.shape),
        None if region is None else _boolean(region, "region", values.shape),
    )


def components(lesion: Bools) -> tuple[npt.NDArray[Any], int]:
    """Return the number of each voxel's component, from 1, and their count; diagonal neighbours are connected."""
    labels, count = ndimage.label(lesion, np.ones((3,) * lesion.ndim))
    return labels, int(count)


def require_lesion(n_volumes: int, n_abnormal: int) -> None:
    """Raise an error if no volume has had a lesion yet."""
    if not n_abnormal:
        raise ValueError(
            f"At least one volume with a lesion is needed, but of {n_volumes} volumes so far each mask is empty: "
            "update with the masks of abnormal volumes before compute."
        )


def _array(data: Any, name: str) -> npt.NDArray[Any]:
    """Return an array or tensor as (H, W[, D])."""
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu()
        data = (data.float() if data.is_floating_point() else data).numpy()
    array = np.asarray(data)
    shape = array.shape
    if array.ndim > 2 and shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            f"{name} has to be of shape (H, W), (H, W, D) or the same behind one channel, got {shape}: give one volume "
            "at a time, not a batch."
        )
    return array


def _boolean(data: Any, name: str, shape: tuple[int, ...]) -> Bools:
    """Return where a mask is nonzero."""
    array = _array(data, name)
    if array.shape != shape:
        raise ValueError(
            f"{name} has to be of the anomaly_map's shape {shape}, got {array.shape}: bring both to one geometry first."
        )
    if array.dtype == np.bool_:
        return array
    if np.issubdtype(array.dtype, np.inexact) and np.isnan(array).any():
        raise ValueError(
            f"{name} has to be zero or nonzero everywhere, got {int(np.isnan(array).sum())} voxels that are NaN."
        )
    nonzero: Bools = array != 0
    return nonzero

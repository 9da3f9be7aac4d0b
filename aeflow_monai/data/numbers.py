"""Limits on the values and sizes of images: those that 32 bits or memory cannot hold are refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_BYTES", "as_float32", "require_size"]

Array = npt.NDArray[Any]

# Limit of an image in its own type and in float32 together: 512 x 512 x 2048 voxels of 16 bits.
MAX_BYTES = 3 * 2**30
_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_STEPS = 256  # distinct values that float32 has to resolve in the range of an image


def require_size(shape: Sequence[int], n_bytes: int, name: str) -> None:
    """Refuse an image that exceeds the memory limit.

    Args:
        shape: shape that its header declares, with channels.
        n_bytes: bytes of a number in memory, as it is read.
        name: name of the file, for the error.

    Raises:
        ValueError: the image takes more than `MAX_BYTES`.

    Example:
        >>> require_size((512, 512, 30000), 2, "a.nii")
        Traceback (most recent call last):
        ValueError: Expected an image of at most 3 GiB in a.nii; its header claims (512, 512, 30000) voxels, 43.9 ...
    """
    wanted = math.prod(int(size) for size in shape) * (n_bytes + 4)
    if wanted > MAX_BYTES:
        raise ValueError(
            f"Expected an image of at most {MAX_BYTES / 2**30:g} GiB in {name}; its header claims "
            f"{tuple(int(size) for size in shape)} voxels, {wanted / 2**30:.1f} GiB in memory. Crop it, or resample it "
            "to larger voxels."
        )


def as_float32(values: Array, name: str) -> npt.NDArray[np.float32]:
    """Convert the values of an image to 32 bits.

    Args:
        values: values of any shape. NaN and infinite values are kept.
        name: name of the file, for the error.

    Raises:
        ValueError: 32 bits cannot hold the values: too large, too small, or too close to each other.

    Example:
        >>> as_float32(np.array([0.0, 1e200]), "a.nii")
        Traceback (most recent call last):
        ValueError: Expected numbers that 32 bits can hold in a.nii; got values from 0.0 to 1e+200. ...
    """
    if values.dtype.kind != "b" and values.dtype.itemsize > 2 and values.dtype != np.float32:
        _require_held(values, name)
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32)


def _require_held(values: Array, name: str) -> None:
    finite = values
    if values.dtype.kind == "f" and values.size and not np.isfinite(values.min() + values.max()):
        finite = values[np.isfinite(values)]
    if not finite.size:
        return
    low, high = finite.min(), finite.max()
    extent = max(abs(float(low)), abs(float(high)))
    sample = finite.ravel()[:: max(1, finite.size // 10**6)]
    sample = sample[(sample != low) & (sample != 0)]  # without background
    spread = float(np.subtract(*np.percentile(sample.astype(np.longdouble), [99, 1]))) if sample.size else 0.0
    step = extent * float(np.finfo(np.float32).eps)
    if extent > _LARGEST or 0 < extent < _SMALLEST or 0 < spread < step * _STEPS:
        raise ValueError(
            f"Expected numbers that 32 bits can hold in {name}; got values from {low} to {high}. Subtract their "
            "lowest value, or scale them, and save them again."
        )

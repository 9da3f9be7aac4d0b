"""Candidate lesions of an anomaly map: its local maxima."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from aeflow_monai.metrics.inputs import Bools, Map

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def find_candidates(values: Map, inside: Bools | None, spacing: Floats, radius: float) -> Ints:
    """Find the local maxima above the median, (n, 2 or 3), the largest first."""
    half = (radius / spacing + 1e-6).astype(np.int64)
    steps = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1).reshape(-1, values.ndim)
    steps = steps[np.linalg.norm(steps * spacing, axis=1) <= radius + 1e-6]
    if len(steps) == 1:
        raise ValueError(
            f"radius_mm has to reach a voxel's neighbours, but {radius} is less than each of spacing_mm "
            f"{spacing.tolist()}: raise radius_mm."
        )
    if inside is None:
        median = np.median(values)
    else:
        median = np.median(values[inside])
        values = np.where(inside, values, np.float32(-np.inf))
    # filtering with a ball is slow, so boxes come first: few voxels are the maximum of the box inside the ball, and
    # those that are also that of the box around it (most of a plateau) need no further test
    inner = 2 * (radius / math.sqrt(values.ndim) / spacing).astype(np.int64) + 1
    above = values > median
    peaks = above & (values == ndimage.maximum_filter(values, size=tuple(2 * half + 1), mode="nearest"))
    unsure = above & ~peaks & (values == ndimage.maximum_filter(values, size=tuple(inner), mode="nearest"))
    padded = np.ascontiguousarray(np.pad(values, [(h, h) for h in half], constant_values=-np.inf))
    flat, strides = padded.ravel(), np.array(padded.strides) // padded.itemsize
    left = (np.argwhere(unsure) + half) @ strides
    for step in steps @ strides:
        left = left[flat[left + step] <= flat[left]]
    peaks[tuple(np.stack(np.unravel_index(left, padded.shape)) - half[:, None])] = True
    coords = np.argwhere(peaks)

    adjacent = np.zeros((3,) * values.ndim, bool)
    adjacent[tuple(steps[(abs(steps) <= 1).all(1)].T + 1)] = True
    plateau = ndimage.label(peaks, adjacent)[0][tuple(coords.T)]
    size = np.bincount(plateau)
    centre = np.stack([np.bincount(plateau, axis)[plateau] / size[plateau] for axis in coords.T], axis=1)
    order = np.lexsort((np.linalg.norm((coords - centre) * spacing, axis=1), plateau))
    coords = coords[order[np.unique(plateau[order], return_index=True)[1]]]
    return coords[np.argsort(-values[tuple(coords.T)], kind="stable")]

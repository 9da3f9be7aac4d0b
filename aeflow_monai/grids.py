"""Where images lie in the world: affines that can be inverted, and whether two grids are the same."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd

# Two grids are the same if their corners are no further apart than this, in mm; headers hold single precision.
TOLERANCE_MM = 1e-2
# Formats without a place in the world.
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def check_affine(affine: npt.NDArray[Any], name: str, n_axes: int) -> None:
    """Refuse an affine whose first `n_axes` columns, those of the image's axes, do not span as many dimensions."""
    axes = np.asarray(affine, dtype=np.float64)[:-1, :n_axes]
    if np.isfinite(affine).all():
        lengths = np.linalg.norm(axes, axis=0)
        if (lengths > 0).all() and np.linalg.matrix_rank(axes / lengths, tol=1e-4) == axes.shape[1]:
            return
    raise ValueError(
        f"Expected an affine that can be inverted in {name}; got {np.round(affine, 4).tolist()}, in which voxels have "
        "no size, or axes fall together. Correct the header (sform and qform of NIfTI), or export the image again."
    )


def corner_distance(first: MetaTensor, second: MetaTensor) -> float:
    """Largest distance, in mm, between the places that two affines give the same corner."""
    corners = [(0, size - 1) for size in first.shape[1:]]
    ends = np.array([[*corner, *[0] * (3 - len(corner)), 1] for corner in itertools.product(*corners)], dtype=float)
    both = [to_affine_nd(3, image.affine.cpu().double().numpy()) for image in (first, second)]
    distance = np.linalg.norm(ends @ (both[0] - both[1]).T, axis=1).max()
    return float(distance) if np.isfinite(distance) else float("inf")


def any_picture(*names: str) -> bool:
    """Whether one of these files is of a format without a place in the world."""
    return any(name.lower().endswith(PICTURES) for name in names)

"""The grid of the file that a map's image came from."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.utils import MetaKeys

from aeflow_monai.geometry import ras_affine

__all__ = ["file_grid", "input_affine", "turn_to_file"]

Array = npt.NDArray[Any]


def input_affine(value: Any, key: Hashable, case: str) -> tuple[Array, Array | None]:
    """Find the affine of the file that a case was loaded from, and how its data are turned to that file's grid.

    Args:
        value: `MetaTensor` (C, X, Y) or (C, X, Y, Z).
        key: of the data, for the error.
        case: for the error.

    Returns:
        The affine, and what `turn_to_file` gives; None if the data lie as in the file.

    Raises:
        ValueError: the data are not on that grid, in whatever order and direction of axes.
    """
    spatial, meta = tuple(value.shape[1:]), value.meta
    affine, (original, expected) = ras_affine(value.affine, meta), file_grid(value)
    own, wanted = (to_affine_nd(len(spatial), each) for each in (affine, original))
    voxel = np.linalg.norm(wanted[:-1, :-1], axis=0).min()  # in mm: of a microscope a thousandth of one or less
    near = np.allclose(own, wanted, atol=1e-3 * min(1.0, voxel))
    if spatial == expected[: len(spatial)] and near:
        return original, None
    if (turn := turn_to_file(value)) is not None:
        return original, turn
    raise ValueError(
        f"'{key}' of case '{case}' has to be on the grid of its input, shape {expected[: len(spatial)]} and affine "
        f"{original.round(3).tolist()}, got shape {spatial} and affine {affine.round(3).tolist()}: "
        "apply Invertd first."
    )


def file_grid(value: MetaTensor) -> tuple[Array, tuple[int, ...]]:
    """Find the grid of the file that data came from, through whatever transforms.

    Args:
        value: `MetaTensor` (C, ...).

    Returns:
        Affine (RAS) and spatial shape of the file; the data's own if they came from none.
    """
    meta = value.meta
    # Written in place of the data's own, which went through every inverse and back.
    original = meta.get(MetaKeys.ORIGINAL_AFFINE)
    affine = ras_affine(value.affine if original is None else original, meta)
    return affine, tuple(int(n) for n in meta.get(MetaKeys.SPATIAL_SHAPE, value.shape[1:]))


def turn_to_file(value: MetaTensor) -> Array | None:
    """How to turn data to the grid of its file, if nothing but the order and the direction of axes differs.

    Args:
        value: (C, X, Y, Z).

    Returns:
        What `nibabel.apply_orientation` takes for (X, Y, Z); None if that is not enough.
    """
    original, expected = file_grid(value)
    if value.ndim != 4 or len(expected) != 3:
        return None
    affine, shape = ras_affine(value.affine, value.meta), tuple(value.shape[1:])
    turn: Array = nib.io_orientation(np.linalg.solve(to_affine_nd(3, original), to_affine_nd(3, affine)))
    if np.isnan(turn).any():
        return None
    turned = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    same_shape = tuple(shape[axis] for axis in np.argsort(turn[:, 0])) == expected
    return turn if same_shape and np.allclose(turned, original, rtol=0, atol=1e-6) else None

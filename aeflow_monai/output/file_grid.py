"""The grid of the file that a map's image was loaded from."""

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
    """Return the affine of the file that a case was loaded from, and how to turn the data to that file's grid.

    Args:
        value: a `MetaTensor` (C, X, Y) or (C, X, Y, Z).
        key: key of the data, for the error.
        case: name of the case, for the error.

    Returns:
        The affine, and the output of `turn_to_file`; None if the data are oriented as in the file.

    Raises:
        ValueError: the data are not on that grid, in any order and direction of axes.
    """
    spatial, meta = tuple(value.shape[1:]), value.meta
    affine, (original, expected) = ras_affine(value.affine, meta), file_grid(value)
    own, wanted = (to_affine_nd(len(spatial), each) for each in (affine, original))
    voxel = np.linalg.norm(wanted[:-1, :-1], axis=0).min()  # in mm: for a microscope a thousandth or less
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
    """Return the grid of the file that data were loaded from, whatever transforms were applied.

    Args:
        value: a `MetaTensor` (C, ...).

    Returns:
        Affine (RAS) and spatial shape of the file; those of the data if they were not loaded from a file.
    """
    meta = value.meta
    # used in place of the data's own, which has the rounding of all transforms and their inverses
    original = meta.get(MetaKeys.ORIGINAL_AFFINE)
    affine = ras_affine(value.affine if original is None else original, meta)
    return affine, tuple(int(n) for n in meta.get(MetaKeys.SPATIAL_SHAPE, value.shape[1:]))


def turn_to_file(value: MetaTensor) -> Array | None:
    """Return how to turn data to the grid of its file, if only the order and direction of axes differ.

    Args:
        value: the data, (C, X, Y, Z).

    Returns:
        An argument of `nibabel.apply_orientation` for (X, Y, Z); None if that is not enough.
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

"""Geometry: planes of a volume, places of its slices, affines, positions in mm.

Volumes are (C, X, Y, Z). The network gets them in orientation PLS: X to posterior, Y to left, Z to superior.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, orientation_ras_lps, to_affine_nd
from monai.utils import MetaKeys, SpaceKeys
from torch import Tensor

__all__ = [
    "PICTURES",
    "PLANES",
    "TOLERANCE_MM",
    "Places",
    "Plane",
    "any_picture",
    "axial_affine",
    "check_affine",
    "corner_distance",
    "format_position",
    "ras_affine",
    "require_planes",
    "stack_of",
    "untailed",
    "voxel_spacing",
]

# Two grids are equal if their corners are no further apart than this, in mm; headers have single precision.
TOLERANCE_MM = 1e-2
# Image formats without an affine.
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")


class Plane(NamedTuple):
    """A plane that volumes in orientation PLS are sliced along.

    Attributes:
        axis: spatial axis along which its slices are numbered: 0 for X, 1 for Y, 2 for Z.
        letter: anatomical direction of a slice's position in mm, "R", "A" or "S".
        first: side of the first slice.
        last: side of the last slice.
    """

    axis: int
    letter: str
    first: str
    last: str

    @property
    def world_axis(self) -> int:
        """World axis (RAS) of a slice's position: 0 for R, 1 for A, 2 for S."""
        return "RAS".index(self.letter)

    @property
    def world_axes_in_plane(self) -> tuple[int, int]:
        """World axes (RAS) that a slice extends along."""
        first, second = (axis for axis in range(3) if axis != self.world_axis)
        return first, second


# The only table of planes: a volume's slices are numbered along `axis`.
PLANES = {
    "axial": Plane(2, "S", "inferior", "superior"),
    "coronal": Plane(0, "A", "anterior", "posterior"),
    "sagittal": Plane(1, "R", "right", "left"),
}


class Places(NamedTuple):
    """Places of slices in their volumes.

    Attributes:
        planes: "axial", "coronal" or "sagittal", for each slice.
        positions: relative slice position, (n,), in [0, 1]: 0 is the first processed slice, 1 the last; 0.5 if there is
            only one.
    """

    planes: Sequence[str]
    positions: Tensor

    @property
    def are_of_volumes(self) -> bool:
        """Return whether any slice is off the middle, the place of 2D images and of a volume's only slice."""
        return bool((self.positions != 0.5).any())

    def part(self, chosen: slice) -> Places:
        """Return the places of some of the slices."""
        return Places(self.planes[chosen], self.positions[chosen])

    @classmethod
    def join(cls, parts: Sequence[Places]) -> Places:
        """Concatenate the places of several groups of slices."""
        return cls([plane for part in parts for plane in part.planes], torch.cat([part.positions for part in parts]))


def require_planes(planes: Sequence[str]) -> None:
    """Raise an error for an unknown plane.

    Raises:
        ValueError: names the first unknown plane.
    """
    if unknown := [plane for plane in planes if plane not in PLANES]:
        raise ValueError(f"Unknown plane {unknown[0]!r} in axes: choose of {list(PLANES)}.")


def stack_of(volume: Tensor, plane: str) -> Tensor:
    """Return a view of a volume (C, X, Y, Z) as slices (n, C, rows, columns); coronal and sagittal ones upside down."""
    axis = PLANES[plane].axis
    return volume.permute(3, 0, 1, 2) if axis == 2 else volume.permute(1 + axis, 0, 3, 2 - axis)


def untailed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape without trailing dimensions of one voxel.

    Example:
        >>> untailed((4, 5, 1, 1)), untailed((4, 1, 5))
        ((4, 5), (4, 1, 5))
    """
    return tuple(shape[: max((k + 1 for k, n in enumerate(shape) if n > 1), default=0)])


def voxel_spacing(volume: Tensor) -> list[float]:
    """Return the voxel size of a volume (C, X, Y, Z) in mm; 1 without an affine."""
    affine = volume.affine if isinstance(volume, MetaTensor) else torch.eye(4)
    return [float(size) for size in affine_to_spacing(affine, r=3)]


def ras_affine(affine: Any, meta: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return the affine from voxel indices to world coordinates in mm, in RAS whatever the reader's convention."""
    array: npt.NDArray[Any] = np.asarray(torch.as_tensor(affine).detach().cpu(), dtype=np.float64)
    if meta.get(MetaKeys.SPACE) == SpaceKeys.LPS:
        array = orientation_ras_lps(array)
    return array


def format_position(letter: str, position: float) -> str:
    """Format a world coordinate with its sign, such as S +12.5 mm."""
    return f"{letter} {round(position, 1) + 0.0:+.1f} mm".replace("-", "\N{MINUS SIGN}")


def check_affine(affine: npt.NDArray[Any], name: str, n_axes: int) -> None:
    """Raise an error for an affine whose first `n_axes` columns, those of the image's axes, are linearly dependent.

    Raises:
        ValueError: names the file, and what is wrong.
    """
    axes = np.asarray(affine, dtype=np.float64)[:-1, :n_axes]
    if np.isfinite(affine).all():
        lengths = np.linalg.norm(axes, axis=0)
        if (lengths > 0).all() and np.linalg.matrix_rank(axes / lengths, tol=1e-4) == axes.shape[1]:
            return
    raise ValueError(
        f"Expected an affine that can be inverted in {name}; got {np.round(affine, 4).tolist()}, in which voxels have "
        "no size, or two axes are parallel. Correct the header (sform and qform of NIfTI), or export the image again."
    )


def corner_distance(first: MetaTensor, second: MetaTensor) -> float:
    """Return the largest distance, in mm, between the corners of an image (C, ...) under two affines."""
    corners = [(0, size - 1) for size in first.shape[1:]]
    ends = np.array([[*corner, *[0] * (3 - len(corner)), 1] for corner in itertools.product(*corners)], dtype=float)
    both = [to_affine_nd(3, ras_affine(image.affine, image.meta)) for image in (first, second)]
    distance = np.linalg.norm(ends @ (both[0] - both[1]).T, axis=1).max()
    return float(distance) if np.isfinite(distance) else float("inf")


def axial_affine(affine: Tensor) -> Tensor:
    """Return the affine (4, 4) of a 2D image's plane, projected to the nearest world plane and treated as axial.

    Args:
        affine: affine of the image, (3, 3) or (4, 4).

    Example:
        >>> sagittal = torch.tensor([[0.0, 0, 5, -48], [2, 0, 0, -56], [0, 2, 0, -50], [0, 0, 0, 1]])
        >>> axial_affine(sagittal)[:2].tolist()
        [[2.0, 0.0, 0.0, -56.0], [0.0, 2.0, 0.0, -50.0]]
    """
    full = torch.as_tensor(to_affine_nd(3, affine.cpu().double()))
    normal = int(torch.linalg.cross(full[:3, 0], full[:3, 1]).abs().argmax())
    in_plane = [axis for axis in range(3) if axis != normal]
    axial = torch.eye(4, dtype=torch.float64)
    axial[:2, :2] = full[in_plane, :2]
    axial[:2, 3] = full[in_plane, 3]
    return axial


def any_picture(*names: str) -> bool:
    """Return whether one of these files has a format without an affine."""
    return any(name.lower().endswith(PICTURES) for name in names)

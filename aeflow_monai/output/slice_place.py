"""The places of slices and voxels in the file that their image was loaded from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.utils import MetaKeys
from torch import Tensor

from aeflow_monai.errors import file_of
from aeflow_monai.geometry import PLANES, any_picture, axial_affine, format_position, ras_affine
from aeflow_monai.output.case_score import most_anomalous_slice
from aeflow_monai.output.file_grid import file_grid
from aeflow_monai.result_files import PEAK_COLUMNS, PLACE_COLUMNS

__all__ = [
    "Peak",
    "SlicePlace",
    "most_anomalous_place",
    "peak_row",
    "place_row",
    "slice_places",
    "voxel_of_file",
]

Array = npt.NDArray[Any]


class SlicePlace(NamedTuple):
    """Place of a slice in its file.

    Voxels are counted from 0, as the formats define their affines, and as NiBabel, 3D Slicer and FSLeyes show them;
    ITK-SNAP counts from 1. All names state this: `slice_from_0`.

    Attributes:
        plane: "axial", "coronal" or "sagittal": the anatomical plane that is closest.
        axis: axis of the file's array along which slices are counted, "i", "j" or "k". For a DICOM folder, axis of the
            volume that its sorted slices make, as in the maps that are written for it.
        slice_from_0: number of the slice along that axis, from 0; the nearest, if the volume was resampled.
        n_slices: number of slices of the file along that axis.
        center_ras_mm: centre of the slice in world coordinates (RAS); None without an affine.

    Example:
        >>> place = SlicePlace("axial", "k", 37, 60, (1.0, -20.0, 12.5))
        >>> print(place)
        axial, k = 37 (0 to 59), S +12.5 mm
        >>> place.position_mm
        12.5
    """

    plane: str
    axis: str
    slice_from_0: int
    n_slices: int
    center_ras_mm: tuple[float, float, float] | None

    @property
    def position_mm(self) -> float | None:
        """Return the centre's position along S for an axial slice, A for a coronal one, R for a sagittal one."""
        return None if self.center_ras_mm is None else self.center_ras_mm[PLANES[self.plane].world_axis]

    def short(self) -> str:
        """Return number and position."""
        number = f"{self.axis} = {self.slice_from_0} (0 to {self.n_slices - 1})"
        position = self.position_mm
        return number if position is None else f"{number}, {format_position(PLANES[self.plane].letter, position)}"

    def __str__(self) -> str:
        """Return plane, number and position."""
        return f"{self.plane}, {self.short()}"


class Peak(NamedTuple):
    """The voxel where an anomaly map is highest.

    Attributes:
        voxel_from_0: indices into the file's array, one for each of its axes.
        ras_mm: its centre in world coordinates (RAS); None without an affine.

    Example:
        >>> print(Peak((50, 87, 11), (-12.5, 3.0, 6.04)))
        voxel 50 87 11, R −12.5 A +3.0 S +6.0 mm
    """

    voxel_from_0: tuple[int, ...]
    ras_mm: tuple[float, float, float] | None

    def __str__(self) -> str:
        """Return voxel and position."""
        voxel = f"voxel {' '.join(map(str, self.voxel_from_0))}"
        if self.ras_mm is None:
            return voxel
        places = [format_position(letter, position) for letter, position in zip("RAS", self.ras_mm, strict=True)]
        return f"{voxel}, {' '.join(places).replace(' mm', '')} mm"


def voxel_of_file(image: Tensor, index: Sequence[int]) -> Peak:
    """Return the voxel of the file for a voxel of a preprocessed image; the nearest, if it was resampled.

    Args:
        image: the image, see `slice_places`.
        index: index of the voxel, three numbers.

    Returns:
        The voxel's place.

    Example:
        >>> import torch
        >>> stored = {"original_affine": torch.diag(torch.tensor([-2.0, 2, 2, 1])), "spatial_shape": (8, 8, 8)}
        >>> image = MetaTensor(torch.zeros(1, 8, 8, 8), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])), meta=stored)
        >>> print(voxel_of_file(image, (0, 3, 2)))
        voxel 0 3 2, R +0.0 A +6.0 S +4.0 mm
    """
    affine, file_affine, file_shape = _grids(image)
    n_axes = len(file_shape)
    if isinstance(image, MetaTensor) and n_axes == 2:  # its plane was treated as axial, see `axial_affine`
        flat, file_flat = (np.asarray(each) for each in (image.affine, axial_affine(_own_affine(image))))
        place = flat[:2, :3] @ np.array(index) + flat[:2, 3]
        voxel = np.linalg.solve(file_flat[:2, :2], place - file_flat[:2, 3])
        ras = file_affine[:3, :2] @ np.rint(voxel) + file_affine[:3, 3]
    else:
        ras = affine[:3, :3] @ np.array(index) + affine[:3, 3]
        voxel = np.linalg.solve(file_affine[:3, :3], ras - file_affine[:3, 3])
    inside = np.rint(voxel).astype(int)[:n_axes].clip(0, np.array(file_shape) - 1)
    right, front, up = (np.round(ras, 3) + 0.0).tolist()  # no -0.0
    is_known = isinstance(image, MetaTensor) and not any_picture(file_of(image))
    return Peak(tuple(inside.tolist()), (right, front, up) if is_known else None)


def peak_row(peak: Peak | None) -> dict[str, Any]:
    """Return the table cells of a peak, by the names of `PEAK_COLUMNS`; empty if unknown."""
    if peak is None:
        return dict.fromkeys(PEAK_COLUMNS, "")
    voxel, ras = (*peak.voxel_from_0, "", "")[:3], peak.ras_mm or ("", "", "")
    return dict(zip(PEAK_COLUMNS, (*voxel, *ras), strict=True))


def slice_places(image: Tensor, plane: str) -> list[SlicePlace]:
    """Return the places of a preprocessed volume's slices in its file.

    Args:
        image: (C, X, Y, Z), in orientation PLS. A `MetaTensor` has an affine and the grid of its file; any other tensor
            is its own grid, without positions in mm.
        plane: "axial", "coronal" or "sagittal".

    Returns:
        A place for each slice along the plane, in the order of the volume; none for a 2D image or a single slice.

    Example:
        >>> import torch
        >>> affine = torch.tensor([[0.0, -1, 0, 16], [-1, 0, 0, 16], [0, 0, 5, -10], [0, 0, 0, 1]])
        >>> stored = {"original_affine": torch.diag(torch.tensor([1.0, 1, -5, 1])), "spatial_shape": (32, 32, 3)}
        >>> stored["original_affine"][2, 3] = 0  # the first slice of the file is on top
        >>> for place in slice_places(MetaTensor(torch.zeros(1, 32, 32, 3), affine=affine, meta=stored), "axial"):
        ...     print(place)
        axial, k = 2 (0 to 2), S −10.0 mm
        axial, k = 1 (0 to 2), S −5.0 mm
        axial, k = 0 (0 to 2), S +0.0 mm
    """
    axis = PLANES[plane].axis
    if image.ndim != 4 or image.shape[1 + axis] == 1:
        return []
    shape, has_affine = np.array(image.shape[1:]), isinstance(image, MetaTensor)
    affine, file_affine, file_shape = _grids(image)
    columns = file_affine[:3, :3]
    # by direction in mm, since voxels of the file may be anisotropic
    file_axis = int(np.abs(affine[:3, axis] @ (columns / np.linalg.norm(columns, axis=0))).argmax())
    n_slices = int((*file_shape, 1, 1)[file_axis])
    if n_slices == 1:
        return []
    centers = np.tile((shape - 1) / 2, (shape[axis], 1))
    centers[:, axis] = np.arange(shape[axis])
    ras = centers @ affine[:3, :3].T + affine[:3, 3]
    indices = np.linalg.solve(columns, (ras - file_affine[:3, 3]).T)[file_axis]
    numbers = np.rint(indices).astype(int).clip(0, n_slices - 1)
    rounded = np.round(ras, 3) + 0.0  # no -0.0
    return [
        SlicePlace(plane, "ijk"[file_axis], number, n_slices, (right, front, up) if has_affine else None)
        for number, (right, front, up) in zip(numbers.tolist(), rounded.tolist(), strict=True)
    ]


def place_row(place: SlicePlace | None) -> dict[str, Any]:
    """Return the table cells of a place, by the names of `PLACE_COLUMNS`; empty without one."""
    if place is None:
        return dict.fromkeys(PLACE_COLUMNS, "")
    position = "" if place.position_mm is None else place.position_mm
    return dict(zip(PLACE_COLUMNS, (place.plane, place.axis, place.slice_from_0, position), strict=True))


def most_anomalous_place(image: Tensor, slice_scores: Mapping[str, Tensor]) -> SlicePlace | None:
    """Return the place of the slice with the highest score, see `most_anomalous_slice`; None without slices."""
    found = most_anomalous_slice(slice_scores)
    places = [] if found is None else slice_places(image, found[0])
    return places[found[1]] if found and places else None


def _own_affine(image: MetaTensor) -> Tensor:
    """Return the affine of the file, in the space of the image's own."""
    return torch.as_tensor(image.meta.get(MetaKeys.ORIGINAL_AFFINE, image.affine))


def _grids(image: Tensor) -> tuple[Array, Array, tuple[int, ...]]:
    """Return the affine (RAS) of an image (C, X, Y, Z), and affine and shape of its file."""
    if not isinstance(image, MetaTensor):
        return np.eye(4), np.eye(4), tuple(image.shape[1:])
    file_affine, file_shape = file_grid(image)
    return to_affine_nd(3, ras_affine(image.affine, image.meta)), to_affine_nd(3, file_affine), file_shape

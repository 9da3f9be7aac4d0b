"""The slicing policy: the slices of a volume that the network processes, their size, and the way back to the volume."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from aeflow_monai.geometry import PLANES, Places, require_planes, stack_of, voxel_spacing

__all__ = ["SliceKind", "Slicer"]

SliceKind = Literal["normal", "abnormal", "unclear"]

FITS = ("resize", "pad")
# Slices larger than image_size are padded to multiples of the largest stride of common backbones.
_MULTIPLE = 32
_ROWS = 16  # rows of a volume whose foreground is counted at once


class Slicer:
    """Cut volumes into slices for the network, and put maps of slices back together.

    Volumes have to be oriented to PLS (rows to posterior, columns to left, slices to superior), as MONAI's
    `Orientationd(axcodes="PLS")` does. Slices of every plane then stand upright: anterior or superior is up, and the
    patient's right is on the left (sagittal: anterior is on the left). A 2D image is a volume of one axial slice.

    Args:
        axes: planes to slice along: "axial", "coronal", "sagittal"; the maps of several are averaged.
        image_size: input size of the network, rows and columns: multiples of the encoder's largest stride.
        fit: how a slice is brought to that size. "resize" stretches it (the aspect ratio is not kept). "pad" keeps its
            resolution and pads with zeros around the centre; nothing is ever cropped: a larger slice is padded to the
            next multiples of 32 instead.
        min_foreground: slices with a smaller fraction of pixels above 0 are skipped, in [0, 1]. A volume's only slice
            is never skipped.
        slice_range: first and last slice that are processed, counted from 1 along the first of the axes, in this
            orientation rather than the file's: axial from inferior, coronal from anterior, sagittal from the right.
            All if None.
        normal_margin_mm: a slice is normal only if neither it nor any slice closer than this has a lesion.
        min_lesion_mm2: smallest lesion area of an abnormal slice. A slice that is neither normal nor abnormal is
            unclear: it is excluded from the training and from slice metrics.

    Raises:
        ValueError: an unknown plane or fit, or a number out of its range.

    Example:
        >>> slicer = Slicer(axes=["axial"], image_size=[32, 32], min_foreground=0.05)
        >>> volume = torch.zeros(1, 30, 20, 6)
        >>> volume[:, 10:20, 5:15, 2:4] = 1.0
        >>> slicer.chosen(volume, "axial").tolist()
        [2, 3]
        >>> tuple(slicer.slices(volume, "axial", torch.tensor([2, 3])).shape)
        (2, 1, 32, 32)
    """

    def __init__(
        self,
        axes: Sequence[str] = ("axial",),
        image_size: Sequence[int] = (128, 128),
        fit: str = "resize",
        min_foreground: float = 0.0,
        slice_range: Sequence[int] | None = None,
        normal_margin_mm: float = 0.0,
        min_lesion_mm2: float = 0.0,
    ) -> None:
        require_planes(axes)
        if not axes or len(set(axes)) < len(axes):
            raise ValueError(f"axes have to name one or more different planes of {list(PLANES)}; got {list(axes)}.")
        if fit not in FITS:
            raise ValueError(f"Unknown fit {fit!r}: choose one of {list(FITS)}.")
        if len(image_size) != 2 or min(image_size) < 1:
            raise ValueError(f"image_size has to be two numbers, rows and columns; got {list(image_size)}.")
        if not 0 <= min_foreground <= 1:
            raise ValueError(f"min_foreground is a fraction of pixels and has to be in [0, 1]; got {min_foreground}.")
        if slice_range is not None and not (len(slice_range) == 2 and 1 <= slice_range[0] <= slice_range[1]):
            raise ValueError(
                f"slice_range has to be the first and the last slice, counted from 1; got {list(slice_range)}."
            )
        if normal_margin_mm < 0 or min_lesion_mm2 < 0:
            raise ValueError(
                f"normal_margin_mm and min_lesion_mm2 have to be 0 or more; got {normal_margin_mm}, {min_lesion_mm2}."
            )
        self.axes = tuple(axes)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.fit = fit
        self.min_foreground = min_foreground
        self.slice_range = None if slice_range is None else (int(slice_range[0]), int(slice_range[1]))
        self.normal_margin_mm = normal_margin_mm
        self.min_lesion_mm2 = min_lesion_mm2

    def policy(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def axes_of(self, volume: Tensor) -> tuple[str, ...]:
        """Return the planes that a volume (C, X, Y, Z) is sliced along; for a single axial slice only the axial one."""
        return ("axial",) if volume.shape[-1] == 1 else self.axes

    @staticmethod
    def count(volume: Tensor, axis: str) -> int:
        """Return the number of slices of a volume (C, X, Y, Z) along the axis of a plane."""
        return int(volume.shape[1 + PLANES[axis].axis])

    def chosen(self, volume: Tensor, axis: str) -> Tensor:
        """Return the slices that the network processes.

        Args:
            volume: (C, X, Y, Z), oriented to PLS, in [0, 1] with a background of 0.
            axis: plane.

        Returns:
            Indices along the plane's axis, ascending, counted from 0.
        """
        dimension = 1 + PLANES[axis].axis
        count = volume.shape[dimension]
        if count == 1:
            return torch.zeros(1, dtype=torch.long)
        others = [d for d in range(4) if d != dimension]
        parts = [(part > 0).float().sum(dim=others) for part in torch.split(volume, _ROWS, dim=1)]
        area = torch.cat(parts) if dimension == 1 else torch.stack(parts).sum(dim=0)
        kept = (area / math.prod(volume.shape[d] for d in others)).cpu() >= self.min_foreground
        if self.slice_range is not None and axis == self.axes[0]:
            numbers = torch.arange(1, count + 1)
            kept &= (numbers >= self.slice_range[0]) & (numbers <= self.slice_range[1])
        return kept.nonzero().flatten()

    @staticmethod
    def places(chosen: Tensor, axis: str) -> Places:
        """Return the places of the slices that the network processes.

        Args:
            chosen: indices of all these slices, (n,), ascending; see `chosen`.
            axis: plane.

        Example:
            >>> Slicer.places(torch.tensor([4, 5, 8]), "axial").positions.tolist()
            [0.0, 0.25, 1.0]
        """
        positions = torch.full((len(chosen),), 0.5)
        if len(chosen) > 1:
            positions = (chosen - chosen[0]) / float(chosen[-1] - chosen[0])
        return Places([axis] * len(chosen), positions)

    def slices(self, volume: Tensor, axis: str, indices: Tensor) -> Tensor:
        """Return slices in the form that the network takes.

        Args:
            volume: (C, X, Y, Z), oriented to PLS.
            axis: plane.
            indices: (n,), along the plane's axis.

        Returns:
            (n, C, H, W).
        """
        planes = _upright(stack_of(volume, axis).index_select(0, indices.to(volume.device)), axis)
        size = self._network_size(planes.shape[-2:])
        if self.fit == "resize":
            return _resize(planes, size)
        top, bottom, left, right = _margins(planes.shape[-2:], size)
        return F.pad(planes, (left, right, top, bottom))

    def paste(self, maps: Tensor, volume: Tensor, axis: str, indices: Tensor) -> None:
        """Add maps of slices to a volume, at the slices' own size and place.

        Args:
            maps: (n, C, H, W), as returned by the network.
            volume: (C, X, Y, Z), changed in place.
            axis: plane.
            indices: (n,), along the plane's axis.
        """
        stack = stack_of(volume, axis)
        maps = self.own_size(maps, (stack.shape[2], stack.shape[3]))
        stack.index_add_(0, indices.to(volume.device), _upright(maps, axis).to(volume))

    def own_size(self, maps: Tensor, own: tuple[int, int]) -> Tensor:
        """Bring maps of slices back to the size of the slices.

        Args:
            maps: (n, C, H, W), as returned by the network.
            own: rows and columns of the slices.

        Returns:
            (n, C, rows, columns); shares memory with the maps if nothing was resized.
        """
        if self.fit == "resize":
            return _resize(maps, own)
        top, _, left, _ = _margins(own, self._network_size(own))
        return maps[..., top : top + own[0], left : left + own[1]]

    def kinds(self, case: Mapping[str, Any], axis: str, name: str = "the image") -> list[SliceKind]:
        """Classify the slices of a case, by its lesion mask if there is one, else by its label.

        Args:
            case: a preprocessed case with "image" (C, X, Y, Z) and possibly "lesion" (1, X, Y, Z), both oriented to
                PLS; nonzero voxels of the mask are lesion. Without a mask all slices are abnormal if "label" is 1, else
                normal.
            axis: plane.
            name: name of the image in errors.

        Returns:
            The kind of each slice along the plane's axis.

        Raises:
            ValueError: mask and image differ in size.
        """
        image, mask = case["image"], case.get("lesion")
        if mask is None:
            return ["abnormal" if case.get("label") == 1 else "normal"] * self.count(image, axis)
        if mask.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"After the preprocessing, the mask of {name} has another size than its image: "
                f"{tuple(mask.shape[1:])} and {tuple(image.shape[1:])}. Give the mask the resampling of the image."
            )
        spacing = voxel_spacing(mask)
        dimension = PLANES[axis].axis
        pixel_mm2 = math.prod(size for d, size in enumerate(spacing) if d != dimension)
        others = [d for d in range(3) if d != dimension]
        area = (torch.as_tensor(mask).as_subclass(Tensor)[0] != 0).sum(dim=others).cpu() * pixel_mm2
        lesion = (area > 0).nonzero().flatten()
        kinds: list[SliceKind] = []
        for index in range(len(area)):
            distance = float((lesion - index).abs().min()) * spacing[dimension] if len(lesion) else math.inf
            if area[index] > 0:
                kinds.append("abnormal" if area[index] >= self.min_lesion_mm2 else "unclear")
            else:
                kinds.append("unclear" if distance < self.normal_margin_mm else "normal")
        return kinds

    def _network_size(self, own: Sequence[int]) -> tuple[int, int]:
        if self.fit == "resize":
            return self.image_size
        rows, columns = (
            wanted if size <= wanted else math.ceil(size / _MULTIPLE) * _MULTIPLE
            for size, wanted in zip(own, self.image_size, strict=True)
        )
        return rows, columns


def _upright(planes: Tensor, axis: str) -> Tensor:
    """Flip slices (n, C, rows, columns) of planes that are upside down; its own inverse."""
    return planes if axis == "axial" else planes.flip(2)


def _resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    if planes.shape[-2:] == size:
        return planes
    shrinks = size[0] < planes.shape[-2] or size[1] < planes.shape[-1]
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False, antialias=shrinks)


def _margins(own: Sequence[int], size: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the pixels to add at top, bottom, left and right."""
    rows, columns = size[0] - own[0], size[1] - own[1]
    return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2

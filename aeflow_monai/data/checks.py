"""Checks on a case before anything is computed from it; errors name file, fault and remedy."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform
from torch import Tensor

from aeflow_monai.data.masks import binary_mask, on_grid_of
from aeflow_monai.errors import file_of
from aeflow_monai.geometry import PLANES, check_affine, require_planes

__all__ = ["CheckImaged"]

_logger = logging.getLogger(__name__)

_DIRECTIONS = ("left to right", "posterior to anterior", "inferior to superior")


class CheckImaged(MapTransform):  # type: ignore[misc]
    """Refuse images that are unfit for scoring, and masks that do not belong to their image.

    It has to follow `LoadCased`, before anything changes the grid or the intensities. Images are not changed. An image
    has to be a 2D image or a volume with finite voxels, not constant (in a volume: in no channel), with an invertible
    affine and more than one row and column in the planes that it is sliced along. An image with only two values is
    logged, since it may be a mask. A mask is made binary (see `binary_mask`) and has to lie on the grid of its image,
    with corners within 0.01 mm; a mask with the same voxels in another axis order is reordered. It has to agree with
    the label: at least one lesion voxel for 1, none for 0.

    Args:
        keys: keys of images (C, H, W) or (C, X, Y, Z); the mask belongs to the first.
        lesion_key: key of the mask; cases without a loaded mask pass.
        axes: planes that volumes are sliced along: "axial", "coronal", "sagittal". A volume of one axial slice is
            always sliced along the axial plane.
        allow_missing_keys: skip keys that are absent.
        label_key: key of the label, 0 or 1; cases without one pass.

    Raises:
        ValueError: an unknown plane.

    Example:
        >>> image = torch.zeros(1, 8, 8)
        >>> CheckImaged()({"image": image})
        Traceback (most recent call last):
        ValueError: Expected an image with a content in 'image'; got the same value, 0, in all voxels. ...
    """

    def __init__(
        self,
        keys: KeysCollection = ("image",),
        lesion_key: str = "lesion",
        axes: Sequence[str] = ("axial",),
        allow_missing_keys: bool = False,
        label_key: str = "label",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        require_planes(axes)
        self.label_key = label_key
        self.lesion_key = lesion_key
        self.axes = tuple(axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check one case.

        Returns:
            The case, with a binary mask (1, ...) of its image's shape and affine.

        Raises:
            ValueError: an image or a mask fails a check.
        """
        d = dict(data)
        for key in self.key_iterator(data):
            image, name = data[key], file_of(data[key], repr(key))
            if image.ndim not in (3, 4):
                raise ValueError(
                    f"Expected a 2D image or a volume in {name}; got {image.ndim - 1} dimensions, shape "
                    f"{tuple(image.shape[1:])}. Split a series into volumes first."
                )
            _check_values(image, name)
            if isinstance(image, MetaTensor):
                check_affine(image.affine.cpu().numpy(), name, image.ndim - 1)
            _check_planes(image, name, self.axes)
        first, mask = d.get(self.keys[0]), d.get(self.lesion_key)
        if isinstance(first, Tensor) and isinstance(mask, Tensor):
            mask_name, name = file_of(mask, repr(self.lesion_key)), file_of(first, repr(self.keys[0]))
            image = first if isinstance(first, MetaTensor) else MetaTensor(first)
            binary = binary_mask(mask, mask_name)
            if not (isinstance(first, MetaTensor) and isinstance(mask, MetaTensor)):  # their positions are unknown
                binary.affine = image.affine
            d[self.lesion_key] = on_grid_of(binary, image, mask_name, name)
            _check_label(d[self.lesion_key], d.get(self.label_key), mask_name, name)
        return d


def _check_values(image: Tensor, name: str) -> None:
    values = torch.as_tensor(image).as_subclass(Tensor)
    low, high = values.aminmax()  # one pass; NaN and infinite values propagate to the result
    if not (torch.isfinite(low) and torch.isfinite(high)):
        wrong = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"Expected finite voxels in {name}; got {wrong} of {values.numel()} that are NaN or infinite. Replace "
            "them in the file, by the value of the background for example."
        )
    if low == high:
        raise ValueError(
            f"Expected an image with a content in {name}; got the same value, {float(low):g}, in all voxels. Export it "
            "again, or take the case out."
        )
    if all(((some == low) | (some == high)).all() for some in (values.flatten()[::97], values)):  # a sample first
        _logger.warning(
            f"{name} holds only two values, {float(low):g} and {float(high):g}, as a mask does. It is taken for an "
            "image."
        )
    if len(values) > 1 and values.ndim == 4 and values.shape[-1] > 1:  # a colour image may have a constant channel
        for number, channel in enumerate(values, start=1):
            low, high = channel.aminmax()
            if low == high:
                raise ValueError(
                    f"Expected a content in each of the {len(values)} channels of {name}; got the same value, "
                    f"{float(low):g}, in all voxels of channel {number}. Export this modality again, or take the case "
                    "out."
                )


def _check_planes(image: Tensor, name: str, axes: Sequence[str]) -> None:
    """Refuse an image whose slices have only one row or column."""
    shape = tuple(image.shape[1:])
    if len(shape) == 2:
        if min(shape) < 2:
            columns, rows = shape
            raise ValueError(
                f"Expected two or more rows and columns in {name}; got {rows} and {columns}. Take the case out."
            )
        return
    extent = list(shape)  # along the world's x, y and z
    if isinstance(image, MetaTensor):
        affine = to_affine_nd(3, image.affine.cpu().double().numpy())
        for size, (world, _) in zip(shape, nib.orientations.io_orientation(affine), strict=True):
            extent[int(world)] = size
    for plane in ("axial",) if extent[2] == 1 else axes:
        thin = [world for world in PLANES[plane].world_axes_in_plane if extent[world] < 2]
        if thin:
            fitting = [
                name for name, other in PLANES.items() if min(extent[world] for world in other.world_axes_in_plane) > 1
            ]
            remedy = f"Train with axes {fitting}, or take the case out." if fitting else "Take the case out."
            raise ValueError(
                f"Expected {plane} slices of two or more rows and columns in {name}; got one voxel from "
                f"{_DIRECTIONS[thin[0]]} (shape {shape}). {remedy}"
            )


def _check_label(mask: Tensor, label: Any, mask_name: str, image_name: str) -> None:
    n_lesion = int(mask.sum())
    if label is None or int(label) == int(n_lesion > 0):
        return
    raise ValueError(
        f"Expected a mask that says what the label of {image_name} says, {int(label)} "
        f"({'abnormal' if int(label) else 'normal'}); got {n_lesion or 'no'} voxels of lesion in {mask_name}. Correct "
        f"the label, or {'name the mask of this image' if int(label) else 'take the mask away'}."
    )

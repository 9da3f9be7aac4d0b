"""Convert lesion masks of any kind to one binary mask: (1, ...), 1 for lesion, 0 elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.utils import MetaKeys, SpaceKeys
from PIL import Image

from aeflow_monai.data.pictures import as_channels, open_picture, read_picture, upright
from aeflow_monai.geometry import TOLERANCE_MM, any_picture, corner_distance, ras_affine, untailed

__all__ = ["binary_mask", "on_grid_of", "read_mask"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

_FEW = 16  # values or colours: a 2D image with more is no label image, unless they are whole numbers up to ...
_NUMBERS = 64
_MANY = 128  # values: a volume with more is an image
_LOW, _HIGH = 0.15, 0.85  # fractions of the range: a value below or above is 0 or 1 with noise
_NEAR = 0.04  # fraction of the range: a value this close to an end may be that end with noise
_ROUNDED = 1e-3  # tolerance for whole numbers changed by a scale factor in the header


def read_mask(path: Path, read: Callable[[Path], MetaTensor]) -> MetaTensor:
    """Read a mask.

    Args:
        path: path of the file.
        read: reads files that are not 2D images, as (C, ...).

    Returns:
        (1, ...), 0 or 1, as float32, with the metadata of the file.

    Raises:
        ValueError: the file cannot be read, or is not a mask; see `binary_mask`.
    """
    if not any_picture(path.name):
        return binary_mask(read(path), str(path))
    image = read_picture(path)  # for its size, affine and the checks on images
    with open_picture(path) as picture:
        shown = upright(picture, path)
        lossy = picture.format in ("JPEG", "MPO")
        if len(image) == 1 and not shown.has_transparency_data and shown.mode != "P":
            lesion = _binary(image.as_tensor().numpy()[0], str(path), whole=_range_of(shown), lossy=lossy)
        else:
            lesion = _coloured(shown, str(path), lossy)
    return MetaTensor(torch.from_numpy(lesion[None].astype(np.float32)), meta=image.meta)


def binary_mask(mask: torch.Tensor, name: str) -> MetaTensor:
    """Make a mask binary.

    Whole numbers are labels: all but 0 are lesion. With only two values, one of them 0, the other is lesion. Fractions
    from 0 to 1 are probabilities: 0.5 and above are lesion.

    Args:
        mask: (1, ...) of any values.
        name: name of the mask in errors.

    Returns:
        (1, ...), 0 or 1, as float32.

    Raises:
        ValueError: several channels; NaN, infinite or negative values; several values without 0; fractions outside of
            [0, 1]; too many values for labels.

    Example:
        >>> binary_mask(torch.tensor([[0.0, 1.0, 3.0]]), "a mask").tolist()
        [[0.0, 1.0, 1.0]]
    """
    if len(mask) != 1:
        raise ValueError(
            f"Expected one mask in {name}; got {len(mask)} channels of shape {tuple(mask.shape[1:])}. Of a one-hot "
            "mask save the channel of the lesion alone, or labels in one channel."
        )
    values = torch.as_tensor(mask).as_subclass(torch.Tensor).cpu().numpy()
    lesion = torch.from_numpy(_binary(values, name).astype(np.float32))
    return MetaTensor(lesion, meta=mask.meta) if isinstance(mask, MetaTensor) else MetaTensor(lesion)


def on_grid_of(mask: MetaTensor, image: MetaTensor, mask_name: str, image_name: str) -> MetaTensor:
    """Reorder the axes of a mask to the grid of its image; nothing is interpolated.

    Args:
        mask: (1, ...).
        image: (C, ...).
        mask_name: file of the mask, for errors.
        image_name: file of the image, for errors.

    Returns:
        The mask, of the image's shape and affine.

    Raises:
        ValueError: the grids differ by more than the order of their axes.
    """
    wanted = tuple(image.shape[1:])
    pictures = any_picture(mask_name), any_picture(image_name)
    same = tuple(mask.shape[1:]) == wanted
    if not any(pictures) and not (same and corner_distance(image, mask) <= TOLERANCE_MM):
        turned = _reordered(mask, image)
        if untailed(turned.shape[1:]) == untailed(wanted) and corner_distance(turned, image) <= TOLERANCE_MM:
            mask = turned
    if untailed(mask.shape[1:]) == untailed(wanted):
        mask = MetaTensor(mask.as_tensor().reshape(1, *wanted), meta=mask.meta)
    if tuple(mask.shape[1:]) != wanted:
        raise ValueError(
            f"Expected a mask of its image's shape, {wanted} as {image_name}; got {tuple(mask.shape[1:])} in "
            f"{mask_name}. Resample the mask to the image, with nearest neighbours."
        )
    if pictures[0] != pictures[1] and (_order(mask, image) != [[0, 1], [1, 1], [2, 1]]).any():
        raise ValueError(
            f"Expected a mask with the axes of {image_name}; those of {mask_name} run otherwise, and one of the two is "
            "a picture, which has no place in the world. Save both in one format."
        )
    if not any(pictures) and (distance := corner_distance(image, mask)) > TOLERANCE_MM:
        raise ValueError(
            f"Expected a mask on the grid of {image_name}; the corners of {mask_name} lie up to {distance:.3g} mm "
            "away from it. Resample the mask to the image, or correct its affine."
        )
    keys = (MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE, MetaKeys.SPACE)
    placed = {key: image.meta[key] for key in keys if key in image.meta}
    return MetaTensor(mask.as_tensor(), meta={**mask.meta, **placed, MetaKeys.SPATIAL_SHAPE: np.asarray(wanted)})


def _binary(values: Array, name: str, whole: float | None = None, lossy: bool = False) -> Bools:
    """Return where values are lesion; `whole` is the largest value of the format, `lossy` means noisy values."""
    found = _values_of(values)
    if not np.isfinite(found).all():
        raise ValueError(f"Expected finite values in {name}; got NaN or infinite ones. Correct the mask.")
    low, high = float(found[0]), float(found[-1])
    if low < 0:
        raise ValueError(
            f"Expected a mask with 0 for background in {name}; got negative values down to {low:g}. Set the lesion "
            "to 1 and all else to 0."
        )
    if low == 0 and len(found) <= 2 and not lossy:
        return np.asarray(values != 0)
    if not lossy and np.abs(found - np.round(found)).max() > _ROUNDED:
        return _of_fractions(values, found, name)
    if low > 0 and len(found) > 1:
        raise ValueError(
            f"Expected a mask with 0 for background in {name}; got values from {low:g} to {high:g} and no 0. Set the "
            "lesion to 1 and all else to 0."
        )
    reached = next((full for full in (255.0, 65535.0) if 0.94 * full <= high <= full), None)
    full = whole or reached or 65535.0
    many = len(found) > _MANY or (len(found) > _FEW and (reached or (whole and high > _NUMBERS)))
    if lossy or many:
        return _of_shades(values, full, name, lossy)
    if reached and _beside_the_ends(found / full):
        raise ValueError(
            f"Expected a mask in {name}; got the values {', '.join(f'{value:g}' for value in found)}, which may be "
            f"labels, or 0 and {full:g} with noise of a compression. Save the mask with 0 for background and 1 for "
            "lesion."
        )
    return np.asarray(np.round(values) != 0)


def _values_of(mask: Array) -> Array:
    """Return the sorted unique values; only nonzero voxels, which are few, are sorted."""
    drawn = mask[mask != 0]
    found: Array = np.unique(drawn if drawn.size == mask.size else np.append(drawn, mask.dtype.type(0)))
    return found


def _of_fractions(values: Array, found: Array, name: str) -> Bools:
    high = float(found[-1])
    if high <= 1 + _ROUNDED:
        return np.asarray(values >= 0.5)
    raise ValueError(
        f"Expected labels, or probabilities from 0 to 1, in {name}; got fractions up to {high:g}, as interpolation "
        "makes them of labels. Resample the mask with nearest neighbours."
    )


def _of_shades(values: Array, full: float, name: str, lossy: bool) -> Bools:
    """Binarise a mask with noise or soft edges at the middle of its range, and refuse other shades."""
    bright = int((values >= _HIGH * full).sum())
    between = int(((values > _LOW * full) & (values < _HIGH * full)).sum())
    noise = int(((values > 0) & (values <= _LOW * full)).sum())
    if (lossy and not values.any()) or (bright and between <= 2 * bright and (lossy or noise <= bright)):
        return values >= full / 2
    cause = "JPEG does not keep labels" if lossy else "these are neither labels nor black and white"
    raise ValueError(
        f"Expected a mask in {name}; got a picture with {len(np.unique(values))} shades, of which {between} pixels are "
        f"between black and white: {cause}. Save the mask without loss, with 0 for background and 1 or 255 for lesion."
    )


def _beside_the_ends(shares: Array) -> bool:
    """Whether the values lie close to the ends of their range, as after lossy compression."""
    return bool(((shares > 0) & (shares <= _NEAR)).any() and ((shares >= 1 - _NEAR) & (shares < 1)).any())


def _coloured(picture: Image.Image, name: str, lossy: bool) -> Bools:
    """Return the lesion (W, H) of a 2D image with colours, a palette or an alpha channel."""
    if picture.mode == "P":
        return _of_palette(picture, name)
    if not picture.has_transparency_data:
        return _of_colours(as_channels(picture.convert("RGB")), name, lossy)
    *channels, opacity = as_channels(picture.convert("RGBA"))
    colours = np.stack(channels)
    if opacity.min() == opacity.max() > 0:
        return _of_colours(colours, name, lossy)
    opaque = _binary(opacity, name, whole=255)
    if (colours == colours[:, :1, :1]).all():  # a single colour: only the alpha channel carries the mask
        return opaque
    edge = (opacity > 0) & ~opaque
    return _agreed(opaque, (colours > 0).any(axis=0) & ~edge, name, "its opacity", "its colours")


def _of_palette(picture: Image.Image, name: str) -> Bools:
    """Return the lesion by palette index and by colour, which have to agree."""
    numbers = as_channels(picture)[0]
    *channels, opacity = as_channels(picture.convert("RGBA"))
    colours = np.stack(channels) * (opacity > 0)
    if len(np.unique(numbers)) > _FEW:  # shades of grey, as in GIF
        return _of_colours(colours, name, lossy=False)
    by_number: Bools = numbers != 0
    by_colour: Bools = (colours > 0).any(axis=0)
    if by_number.all() and not by_colour.all():  # the palette has no background at index 0
        return by_colour
    if by_number.any() and (colours == colours[:, :1, :1]).all():  # a single colour: only the index carries the mask
        return _binary(numbers, name)
    return _agreed(by_number, by_colour, name, "the numbers of its palette", "their colours")


def _of_colours(colours: Array, name: str, lossy: bool) -> Bools:
    """Return the lesion of colours (3, W, H): every pixel that is not black."""
    brightest = colours.max(axis=0)
    kinds = len(_values_of(np.tensordot([2**16, 2**8, 1], colours, axes=1)))
    if lossy or kinds > _FEW or (colours == colours[:1]).all():
        return _binary(brightest, name, whole=255, lossy=lossy)
    if brightest.all() and kinds > 1:
        raise ValueError(
            f"Expected a mask with a black background in {name}; got {kinds} colours, and none of them is black. Set "
            "the lesion to white and all else to black."
        )
    return np.asarray(brightest > 0)


def _agreed(one: Bools, other: Bools, name: str, first: str, second: str) -> Bools:
    if (one != other).any():
        raise ValueError(
            f"Expected a mask in {name}; got a picture of which {first} and {second} say different things: "
            f"{int(one.sum())} and {int(other.sum())} pixels of lesion. Save the mask in grey, with 0 for background "
            "and 255 for lesion."
        )
    return one


def _range_of(picture: Image.Image) -> float | None:
    """Return the largest value that a grey image can hold; None for 32 bits."""
    if picture.mode in ("1", "L"):
        return 255.0
    return 65535.0 if picture.mode.startswith("I;16") else None


def _order(mask: MetaTensor, image: MetaTensor) -> Array:
    """Return, for each axis of the mask, the matching axis of the image and the direction; NaN where none matches."""
    mask_affine, image_affine = (to_affine_nd(3, ras_affine(each.affine, each.meta)) for each in (mask, image))
    order: Array = nib.orientations.io_orientation(np.linalg.solve(image_affine, mask_affine))
    return order


def _reordered(mask: MetaTensor, image: MetaTensor) -> MetaTensor:
    """Return the mask with its axes in the order and direction of the image's axes."""
    order = _order(mask, image)
    if np.isnan(order).any() or mask.ndim > 4:
        return mask
    values = mask.as_tensor().numpy()[0]
    values = values.reshape((*values.shape, 1, 1)[:3])
    turned = np.ascontiguousarray(nib.orientations.apply_orientation(values, order))
    affine = to_affine_nd(3, ras_affine(mask.affine, mask.meta)) @ nib.orientations.inv_ornt_aff(order, values.shape)
    meta = {**mask.meta, MetaKeys.SPACE: SpaceKeys.RAS, MetaKeys.AFFINE: torch.from_numpy(affine)}
    return MetaTensor(torch.from_numpy(turned[None]), meta=meta)

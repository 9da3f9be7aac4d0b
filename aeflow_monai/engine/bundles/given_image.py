"""Images that are given from Python, as the preprocessing reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys
from torch import Tensor

from aeflow_monai.data.numbers import as_float32
from aeflow_monai.geometry import any_picture

__all__ = ["loadable"]


def loadable(image: Any, of_pictures: bool) -> Any:
    """Return paths as text, or an array channel first with its affine. For 2D models few slices are colours."""
    if isinstance(image, (str, Path)):
        return str(image)
    if isinstance(image, (list, tuple)) and image and all(isinstance(path, (str, Path)) for path in image):
        return [str(path) for path in image]
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(f"Expected a path, an array or a tensor; got {type(image).__name__}.")
    ends = (image.shape[0], image.shape[-1]) if image.ndim == 3 and not isinstance(image, MetaTensor) else (0, 0)
    is_colour = ends[1] in (3, 4) and (of_pictures or image.dtype in (np.uint8, torch.uint8))
    if is_colour or ends[0] in (3, 4):  # channel last or first
        raise ValueError(
            f"An array of shape {tuple(image.shape)} is taken for a picture with colours: give its path; or of a "
            "volume a MetaTensor with its affine."
        )
    is_slice = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 1)
    if of_pictures and ((is_slice and not isinstance(image, MetaTensor)) or _is_unplaced_picture(image)):
        raise ValueError(
            f"An array of shape {tuple(image.shape)} for a model of 2D images may be turned: rows and columns of an "
            "image file run otherwise than an array's axes are taken. Give the file's path, or a MetaTensor with its "
            "affine."
        )
    if 0 in image.shape:
        raise ValueError(f"Expected an image with voxels; got the shape {tuple(image.shape)}.")
    if isinstance(image, np.ma.MaskedArray):
        raise ValueError("Expected a value in each voxel; got a masked array. Fill it, as by image.filled(0).")
    is_plain = image.dtype.kind in "biufc" if isinstance(image, np.ndarray) else _is_dense(image)
    if not is_plain:
        raise ValueError(f"Expected an array of plain numbers; got one of {image.dtype}, or one that holds no values.")
    if image.is_complex() if isinstance(image, Tensor) else np.iscomplexobj(image):
        raise ValueError("Expected real numbers; got complex ones. Give their magnitude.")
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(as_float32(image, "the array")))
    elif image.dtype != torch.float32 and image.element_size() > 2:
        as_float32(image.detach().cpu().numpy(), "the tensor")  # raises an error where `float` below would round
    if isinstance(image, MetaTensor) and len(image.meta.get("spatial_shape", image.shape)) == image.ndim - 1:
        return _own_file(MetaTensor(image.detach().float()))  # channel first, as from MONAI's loader
    if image.ndim not in (2, 3):
        raise ValueError(f"Expected an image (X, Y) or a volume (X, Y, Z); got the shape {tuple(image.shape)}.")
    return _own_file(MetaTensor(image.detach().float()[None]))


def _is_unplaced_picture(image: Any) -> bool:
    """Return whether an image file without an affine was read by another reader, which has its axes otherwise."""
    if not isinstance(image, MetaTensor) or not any_picture(str(image.meta.get("filename_or_obj", ""))):
        return False
    return torch.equal(image.affine, torch.eye(len(image.affine)).to(image.affine))


def _is_dense(image: Tensor) -> bool:
    """Return whether a tensor stores every value."""
    return image.layout == torch.strided and not image.is_quantized and image.device.type != "meta"


def _own_file(image: MetaTensor) -> MetaTensor:
    """Return the array (C, ...) as a file of its own, in which slices are counted, whatever file it came from."""
    image.meta[MetaKeys.ORIGINAL_AFFINE] = image.affine.clone()
    image.meta[MetaKeys.SPATIAL_SHAPE] = tuple(image.shape[1:])
    return image

"""Checks of the labels that readers submit: they are read and compared with their image before they are saved."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from monai.data import MetaTensor
from torch import Tensor

from aeflow_monai.data.masks import on_grid_of
from aeflow_monai.data.readers import LoadCased
from aeflow_monai.errors import describe_error
from aeflow_monai.geometry import corner_distance, voxel_spacing

__all__ = ["check_label", "lay_on_grid"]

_MAX_VALUE = 255


def check_label(label: str, image: str) -> None:
    """Refuse a label that does not match its image.

    Args:
        label: path of the submitted file.
        image: path of the image.

    Raises:
        ValueError: one of them cannot be read; the label has another grid, values other than whole numbers from 0 to
            255, or is not a mask as evaluations read it.
    """
    values = lay_on_grid(_read(label, "label"), _read(image, "image"), label, image)
    of_label = torch.as_tensor(values).as_subclass(Tensor)
    is_number = of_label.isfinite() & (of_label == of_label.round()) & (of_label >= 0) & (of_label <= _MAX_VALUE)
    if not bool(is_number.all()):
        raise ValueError(
            f"Expected a label of whole numbers from 0, the background, to {_MAX_VALUE}; got "
            f"{of_label[~is_number][0].item():g}. Submit the label itself, and not a map."
        )
    _read(label, "label", "lesion")


def lay_on_grid(label: MetaTensor, image: MetaTensor, label_name: str, image_name: str) -> MetaTensor:
    """Reorder a label to the grid of its image, or refuse it if shape or position differ, for example if mirrored.

    Args:
        label: (1, X, Y[, Z]); its axes may differ from the image's in order and direction.
        image: (C, X, Y[, Z]).
        label_name: path of the label.
        image_name: path of the image.

    Returns:
        The label on the axes of the image.

    Raises:
        ValueError: shapes differ, or positions differ by more than a voxel.
    """
    if len(label) == 1:
        with suppress(ValueError):  # reported below in terms of a label
            return on_grid_of(label, image, label_name, image_name)
    name, found, shape = Path(image_name).name, tuple(label.shape[1:]), tuple(image.shape[1:])
    if len(label) != 1 or [n for n in found if n > 1] != [n for n in shape if n > 1]:
        channels = f" in {len(label)} channels" if len(label) != 1 else ""
        raise ValueError(
            f"Expected a label of its image's shape, {shape}; got {found}{channels} for {name}. Submit it again, drawn "
            "on the image's own grid."
        )
    if len(shape) == 2:
        return label  # formats of 2D images have no position
    apart = corner_distance(image, label)
    if apart > min(voxel_spacing(image)):
        raise ValueError(
            f"Expected a label that lies where its image does; that of {name} is up to {apart:.1f} mm off. Submit it "
            "again, drawn on the image's own grid."
        )
    return label


def _read(path: str, what: str, key: str = "image") -> MetaTensor:
    try:
        image: MetaTensor = LoadCased(key)({key: path})[key]
    except Exception as error:  # readers raise various errors
        said = describe_error(error).replace(path, f"the {what}")
        raise ValueError(
            f"Expected a label that can be compared with its image; the {what} cannot be read. {said}"
        ) from error
    return image

"""Labels that readers submit: read, and compared with their image, before anything is kept."""

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
    """Refuse a label that cannot be one of its image.

    Args:
        label: path of the file that was submitted.
        image: path of the image.

    Raises:
        ValueError: one of them cannot be read; the label has another grid, values that are no numbers of structures
            from 0 to 255, or is no mask as evaluations read it.
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
    """Lay a label on its image's grid, or refuse one that has another shape or lies elsewhere, such as mirrored.

    Args:
        label: (1, X, Y[, Z]); its axes may have another order and direction than the image's.
        image: (C, X, Y[, Z]).
        label_name: path of the label.
        image_name: path of the image.

    Returns:
        The label with the axes of the image.

    Raises:
        ValueError: they differ by more than that and a voxel.
    """
    if len(label) == 1:
        with suppress(ValueError):  # which is said below in the words of a label
            return on_grid_of(label, image, label_name, image_name)
    name, found, shape = Path(image_name).name, tuple(label.shape[1:]), tuple(image.shape[1:])
    if len(label) != 1 or [n for n in found if n > 1] != [n for n in shape if n > 1]:
        channels = f" in {len(label)} channels" if len(label) != 1 else ""
        raise ValueError(
            f"Expected a label of its image's shape, {shape}; got {found}{channels} for {name}. Submit it again, drawn "
            "on the image's own grid."
        )
    if len(shape) == 2:
        return label  # formats of 2D images know no place
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
    except Exception as error:  # a reader's, whichever was tried last
        said = describe_error(error).replace(path, f"the {what}")
        raise ValueError(
            f"Expected a label that can be compared with its image; the {what} cannot be read. {said}"
        ) from error
    return image

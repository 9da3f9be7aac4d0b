"""Labels that readers submit: read, and compared with their image, before anything is kept."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.data import MetaTensor
from torch import Tensor

from aeflow_monai.data.readers import LoadCased
from aeflow_monai.errors import describe_error
from aeflow_monai.geometry import corner_distance, voxel_spacing

__all__ = ["check_grid", "check_label"]

_MAX_VALUE = 255


def check_label(label: str, image: str) -> None:
    """Refuse a label that cannot be one of its image.

    Args:
        label: path of the file that was submitted.
        image: path of the image.

    Raises:
        ValueError: one of them cannot be read; the label has another grid, or values that are no numbers of structures
            from 0 to 255.
    """
    values = _read(label, "label")
    check_grid(values, _read(image, "image"), Path(image).name)
    of_label = torch.as_tensor(values).as_subclass(Tensor)
    is_number = of_label.isfinite() & (of_label == of_label.round()) & (of_label >= 0) & (of_label <= _MAX_VALUE)
    if not bool(is_number.all()):
        raise ValueError(
            f"Expected a label of whole numbers from 0, the background, to {_MAX_VALUE}; got "
            f"{of_label[~is_number][0].item():g}. Submit the label itself, and not a map."
        )


def check_grid(label: MetaTensor, image: MetaTensor, name: str) -> None:
    """Refuse a label of another shape than its image's, or of the same shape that lies elsewhere, such as mirrored.

    Args:
        label: (1, X, Y[, Z]), on its own grid.
        image: (C, X, Y[, Z]), likewise.
        name: of the image or the label, for the message.

    Raises:
        ValueError: they differ.
    """
    found, shape = tuple(label.shape[1:]), tuple(image.shape[1:])
    if len(label) != 1 or [n for n in found if n > 1] != [n for n in shape if n > 1]:
        channels = f" in {len(label)} channels" if len(label) != 1 else ""
        raise ValueError(
            f"Expected a label of its image's shape, {shape}; got {found}{channels} for {name}. Submit it again, drawn "
            "on the image's own grid."
        )
    if len(shape) == 2:
        return  # formats of 2D images know no place
    apart = corner_distance(image, label)
    if apart > min(voxel_spacing(image)):
        raise ValueError(
            f"Expected a label that lies where its image does; that of {name} is up to {apart:.1f} mm off. Submit it "
            "again, drawn on the image's own grid."
        )


def _read(path: str, what: str) -> MetaTensor:
    try:
        image: MetaTensor = LoadCased("image")({"image": path})["image"]
    except Exception as error:  # a reader's, whichever was tried last
        said = describe_error(error).replace(path, f"the {what}")
        raise ValueError(
            f"Expected a label that can be compared with its image; the {what} cannot be read. {said}"
        ) from error
    return image

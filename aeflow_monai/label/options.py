"""Options of requests, read and checked."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from typing import Any

import requests
import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.utils.others.generic import name_to_device

from aeflow_monai.output.viewer import CALIBRATED, parse_threshold

__all__ = ["check_batch_options", "check_image", "check_infer_options", "device_of", "training_options"]

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
DTYPES = ("uint8", "uint16", "int16", "int32", "float32")

# Options of a training, and of the bundle's train.yaml: what it is called there, its type and its range.
TRAINING = {
    "max_epochs": ("epochs", int, "a whole number from 1"),
    "train_batch_size": ("batch_size", int, "a whole number from 1"),
    "learning_rate": ("learning_rate", float, "a number above 0"),
    "val_split": ("calibration_fraction", float, "a fraction of the normals in (0, 1)"),
    "seed": ("seed", int, "a whole number from 0"),
}
_BATCH = ("max_batch_size", "max_workers")


def device_of(request: Mapping[str, Any]) -> str:
    """The device that a request names, as torch calls it.

    Args:
        request: with "device", a name of MONAI Label or of torch; a GPU where there is one if it is left out.

    Returns:
        The device, such as "cpu" or "cuda:0".

    Raises:
        ValueError: torch has no such device here.
    """
    wanted = request.get("device")
    try:
        device = str(name_to_device(wanted))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, KeyError) as error:
        raise ValueError(
            f"Expected a device that torch has here, such as 'cpu'; got {wanted!r}. Choose another in the options."
        ) from error
    return device


def check_infer_options(request: Mapping[str, Any]) -> None:
    """Refuse an infer request with an option that it cannot have.

    Args:
        request: "threshold", "result_extension", "result_dtype" and "device" are read.

    Raises:
        ValueError: one of them has a value that it cannot have.
    """
    parse_threshold(request.get("threshold", CALIBRATED))
    for name, known in (("result_extension", EXTENSIONS), ("result_dtype", DTYPES)):
        value = request.get(name)
        if value and value not in known:
            raise ValueError(f"Expected a {name} of {', '.join(known)}; got {value!r}.")
    device_of(request)


def check_batch_options(request: Mapping[str, Any], images: Collection[str]) -> None:
    """Refuse a batch with an option that it cannot have, which would fail for each of its images.

    Args:
        request: see `check_infer_options`; "max_batch_size", "max_workers" and "images" too.
        images: of the datastore.

    Raises:
        ValueError: one of them has a value that it cannot have.
    """
    check_infer_options(request)
    chosen = request.get("images")
    if isinstance(chosen, list) and (unknown := [image for image in chosen if image not in images]):
        raise ValueError(_no_image(unknown[0]))
    for name in _BATCH:
        value = request.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"Expected a whole number from 0 for the option {name}; got {value!r}.")


def check_image(image: Any, datastore: Datastore) -> None:
    """Refuse an image that is not there.

    Args:
        image: its name in the datastore, or the path of an upload; anything but text is left to MONAI Label.
        datastore: with the images; of a DICOMweb server the series is fetched.

    Raises:
        ValueError: there is no such image, or it cannot be fetched.
    """
    if not isinstance(image, str) or os.path.exists(image):  # noqa: PTH110, MONAI Label asks so; no name is too long
        return
    try:
        found = datastore.get_image_uri(image)
    except (IndexError, KeyError, requests.RequestException) as error:  # as a DICOMweb server happens to answer
        raise ValueError(
            f"The series {image!r} cannot be fetched ({type(error).__name__}). Is it there, and does the DICOMweb "
            "server answer?"
        ) from error
    if not found:
        raise ValueError(_no_image(image))


def _no_image(image: Any) -> str:
    return f"There is no image {image!r} among the studies. Choose another, or put its file there."


def training_options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Options of train.yaml for those of a request that are given.

    Args:
        request: by the names of `TRAINING`; numbers may be text. "device" is read.

    Returns:
        By the names of train.yaml.

    Raises:
        ValueError: an option has a value that it cannot have.
    """
    device_of(request)
    options: dict[str, Any] = {}
    for name, (key, kind, described) in TRAINING.items():
        value = request.get(name)
        if value is None or value == "":
            continue
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError):
            number = math.nan
        lowest = 0 if name == "seed" else 1 if kind is int else math.ulp(0.0)
        fits = number >= lowest and math.isfinite(number) and (kind is float or number == int(number))
        if not fits or (name == "val_split" and number >= 1):
            raise ValueError(f"Expected {described} for the option {name}; got {value!r}.")
        options[key] = kind(number)
    return options

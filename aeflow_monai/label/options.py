"""Parse and check the options of requests."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.utils.others.generic import name_to_device

from aeflow_monai.label.names import check_image_id, check_word, quoted
from aeflow_monai.output.viewer import CALIBRATED, parse_threshold

__all__ = [
    "CONFIRMATION",
    "check_batch_options",
    "check_infer_options",
    "check_known",
    "device_of",
    "image_path",
    "is_confirmed",
    "training_options",
]

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
DTYPES = ("uint8", "uint16", "int16", "int32", "float32")

# Options of a training request: name in the bundle's train.yaml, type and range.
TRAINING = {
    "max_epochs": ("epochs", int, "a whole number from 1"),
    "train_batch_size": ("batch_size", int, "a whole number from 1"),
    "learning_rate": ("learning_rate", float, "a number above 0"),
    "val_split": ("calibration_fraction", float, "a fraction of the normals in (0, 1)"),
    "seed": ("seed", int, "a whole number from 0"),
}
# Option that confirms a training on fewer normals than the model in use had.
CONFIRMATION = "allow_fewer_normals"
_BATCH = ("max_batch_size", "max_workers")

# Other allowed options: those that viewers always send, and MONAI Label's own of each kind of request.
_OF_ALL = ("model", "method", "client_id", "device", "gpus", "multi_gpu", "logging", "description")
_RESULT = ("threshold", "result_extension", "result_dtype", "result_compress", "restore_label_idx", "label_info")
_SAVING = ("image", "save_label", "label_tag", "label", "session")
_KNOWN = {
    "infer": (*_RESULT, *_SAVING),
    "train": (*TRAINING, CONFIRMATION, "name", "local_rank"),
    "scoring": ("force",),
    "batch_infer": (*_RESULT, *_BATCH, "save_label", "label_tag", "images"),
    "activelearning": ("strategy", "label_tag", "labels"),
}
_CHOICES = ("all", "labeled", "unlabeled")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_GPUS = re.compile(r"all|\d+(,\d+)*")


def device_of(request: Mapping[str, Any]) -> str:
    """Return the device of a request, in torch's terms.

    Args:
        request: "device" is a name of MONAI Label or torch; without it a GPU is used if available.

    Returns:
        The device, such as "cpu" or "cuda:0".

    Raises:
        ValueError: the device is not available.
    """
    wanted = request.get("device")
    try:
        device = str(name_to_device(wanted))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"Expected a device that torch has here, such as 'cpu'; got {wanted!r}. Choose another in the options."
        ) from error
    return device


def check_infer_options(request: Mapping[str, Any]) -> None:
    """Refuse an infer request with an invalid option.

    Args:
        request: "threshold", "result_extension", "result_dtype" and "device" are read.

    Raises:
        ValueError: one of them has an invalid value.
    """
    parse_threshold(request.get("threshold", CALIBRATED))
    for name, known in (("result_extension", EXTENSIONS), ("result_dtype", DTYPES)):
        value = request.get(name)
        if value and value not in known:
            raise ValueError(f"Expected a {name} of {', '.join(known)}; got {quoted(value)}.")
    device_of(request)


def check_batch_options(request: Mapping[str, Any], images: Collection[str]) -> None:
    """Refuse a batch request with an invalid option, which would fail for each image.

    Args:
        request: see `check_infer_options`; also "max_batch_size", "max_workers" and "images".
        images: names of the images in the datastore.

    Raises:
        ValueError: one of them has an invalid value.
    """
    check_infer_options(request)
    chosen = request.get("images", "all")
    if isinstance(chosen, list):
        if unknown := [image for image in chosen if not isinstance(image, str) or image not in images]:
            raise ValueError(_no_image(unknown[0]))
    elif str(getattr(chosen, "value", chosen)) not in _CHOICES:
        raise ValueError(f"Expected {', '.join(_CHOICES)} or a list of images as images; got {quoted(chosen)}.")
    for name in _BATCH:
        value = request.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"Expected a whole number from 0 for the option {name}; got {value!r}.")


def check_known(kind: str, request: Mapping[str, Any], names: Collection[str] = ()) -> None:
    """Refuse a request with an unknown option, such as a misspelt one, or one that clients may not set.

    Args:
        kind: "infer", "train", "scoring", "batch_infer" or "activelearning".
        request: options by name.
        names: names of tasks, each of which may have a dictionary of options.

    Raises:
        ValueError: names the option and the known ones.
    """
    known = (*_OF_ALL, *_KNOWN[kind])
    level = request.get("logging", "INFO")
    if str(level).upper() not in _LEVELS:
        raise ValueError(f"Expected a logging of {', '.join(_LEVELS)}; got {quoted(level)}.")
    if unknown := [
        name for name in request if name not in known and not (name in names and _is_options(request[name]))
    ]:
        raise ValueError(f"There is no option {quoted(unknown[0])}. Choose among {', '.join(sorted(known))}.")
    for name in ("model", "method", "strategy", "label_tag"):
        if request.get(name) is not None:
            check_word(name, str(request[name]))
    gpus = request.get("gpus")
    if gpus and not (isinstance(gpus, str) and _GPUS.fullmatch(gpus)):
        raise ValueError(f"Expected 'all' or numbers such as '0,1' for the option gpus; got {quoted(gpus)}.")


def is_confirmed(request: Mapping[str, Any]) -> bool:
    """Whether a request confirms a training on fewer normals."""
    return str(request.get(CONFIRMATION, False)).lower() in ("true", "1")


def image_path(image: Any, datastore: Datastore, folders: Collection[str | Path]) -> str:
    """Return the file of the image in a request: one of the studies, or an upload.

    Args:
        image: name in the datastore, or path of an upload.
        datastore: datastore of the images; a series is downloaded from a DICOMweb server.
        folders: folders of uploads.

    Returns:
        The path of the file.

    Raises:
        ValueError: the image does not exist.
    """
    if not isinstance(image, str) or not image:
        raise ValueError("Expected an image of the studies, an upload, or a session that has not expired; got none.")
    path = Path(image)
    if path.is_absolute():  # an upload; requests cannot name absolute paths, see `check_image_id`
        if any(Path(folder) in path.parents for folder in folders) and ".." not in path.parts and path.exists():
            return image
        raise ValueError(_no_image(path.name))
    check_image_id(image)
    found = datastore.get_image_uri(image)
    if not found or not Path(found).is_file():  # deleted since the folder was listed
        raise ValueError(_no_image(image))
    return str(found)


def _is_options(value: Any) -> bool:
    return isinstance(value, Mapping)


def _no_image(image: Any) -> str:
    return f"There is no image {quoted(image)} among the studies. Choose another, or put its file there."


def training_options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Map the given training options of a request to options of train.yaml.

    Args:
        request: options by the names of `TRAINING`; numbers may be text. "device" is read.

    Returns:
        Options by the names of train.yaml.

    Raises:
        ValueError: an option has an invalid value.
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

"""What runs write, read back for the tests."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aeflow_monai.errors import root_cause

MAPS = ("anomaly_map", "reconstruction", "residual", "log_likelihood")
# files of a volume, by the name of the output
OUTPUTS = {
    **{name: (f"{name}.nii.gz",) for name in (*MAPS, "anomaly_mask")},
    "overlay": ("overlay.png",),
    "profile": ("slices.csv", "slices.png"),
}
REPORTS = {"metrics.json", "scores.csv", "localisation.json", "slice_scores.csv"}
# of a bundle, without what only a training leaves, in logs
BUNDLE = {
    *(f"configs/{name}.yaml" for name in ("train", "inference", "evaluate", "calibrate")),
    *("configs/metadata.json", "configs/logging.conf", "models/model.pt", "docs/README.md", "LICENSE"),
}
LOSSES = ("train_loss", "train_flow_loss", "train_reconstruction_loss", "val_loss")


def files_below(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(files_below(folder))}


def model_state(run: Path) -> dict[str, torch.Tensor]:
    """State dict of the model in a bundle."""
    return torch.load(run / "models/model.pt", weights_only=True)["model"]


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not equal bit by bit."""
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "logs/tensorboard"))
    accumulator.Reload()
    return accumulator


def loss_curve(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(run).Scalars(tag)]


def epochs_in_log(log: str) -> list[int]:
    """Epochs whose training loss is in the log, in its order."""
    return [int(number) for number in re.findall(r"Trainer - INFO - Epoch\[(\d+)\] Metrics -- .*train_loss", log)]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def said(raised: pytest.ExceptionInfo[BaseException]) -> str:
    """The message below the errors in which MONAI wraps it."""
    return str(root_cause(raised.value))


def spatial(file: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Voxels and affine (RAS, mm) of an image in any format."""
    image = LoadImage(image_only=True, reader=["ITKReader", "NibabelReader"])(file)
    assert isinstance(image, MetaTensor)
    return image.numpy(), image.affine.numpy()

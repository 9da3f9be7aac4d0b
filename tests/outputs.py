"""What runs write, read back for the tests."""

import csv
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from monai.data import MetaTensor
from monai.transforms import LoadImage
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aeflow_monai import Workflow
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.errors import root_cause
from aeflow_monai.file_digests import sha256_of

MAPS = ("anomaly_map", "reconstruction", "residual", "log_likelihood")
# files of a volume, by the name of the output
OUTPUTS = {
    **{name: (f"{name}.nii.gz",) for name in (*MAPS, "anomaly_mask")},
    "overlay": ("overlay.png",),
    "profile": ("slices.csv", "slices.png"),
}
REPORTS = {"metrics.json", "scores.csv", "localisation.json", "slice_scores.csv", "lesions.csv"}
# of a bundle, without what only a training leaves, in logs
BUNDLE = {
    *(f"configs/{name}.yaml" for name in ("train", "inference", "evaluate", "calibrate")),
    *("configs/metadata.json", "configs/logging.conf", "models/model.pt", "docs/README.md", "LICENSE"),
}
LOSSES = ("train_loss", "train_flow_loss", "train_reconstruction_loss", "val_loss")


def files_below(folder: Path) -> set[str]:
    """All files but the records and pages of inferences and evaluations, which hold times."""
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    return {name for name in found if not name.endswith(("run.json", "report.html")) or name.endswith("logs/run.json")}


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of all files: a difference of bytes themselves can take pytest hours to put into words."""
    return {name: sha256_of(folder / name) for name in sorted(files_below(folder))}


def unequal(first: Path, second: Path, names: Iterable[str]) -> list[str]:
    """Names of the files that are not equal byte by byte in two folders."""
    return [name for name in sorted(names) if sha256_of(first / name) != sha256_of(second / name)]


def assert_same_outputs(first: Path, second: Path, names: Iterable[str]) -> None:
    """Compare what two processes wrote: equal but for the rounding of sums, whose order a process may choose anew."""
    for name in sorted(names):
        one, other = first / name, second / name
        if name.endswith(".nii.gz"):
            images = [nib.load(file) for file in (one, other)]
            np.testing.assert_allclose(images[0].affine, images[1].affine, atol=1e-5, err_msg=name)
            assert images[0].get_data_dtype() == images[1].get_data_dtype(), name
            values = [np.asarray(image.dataobj, dtype=np.float64) for image in images]
            if name.endswith("mask.nii.gz"):
                assert np.mean(values[0] != values[1]) < 1e-4, name
            else:
                np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4 * np.abs(values[1]).max(), err_msg=name)
        elif name.endswith(".csv"):
            rows = [[*csv.reader(file.read_text(encoding="utf-8").splitlines())] for file in (one, other)]
            assert [len(row) for row in rows[0]] == [len(row) for row in rows[1]], name
            for cells in zip(*(chain.from_iterable(table) for table in rows), strict=True):
                assert cells[0] == cells[1] or float(cells[0]) == pytest.approx(float(cells[1]), rel=1e-4), name
        else:
            pictures = [np.asarray(Image.open(file), dtype=float) for file in (one, other)]
            assert pictures[0].shape == pictures[1].shape, name
            assert np.abs(pictures[0] - pictures[1]).mean() < 0.5, name


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
    # TensorBoard reads the files of one second in the order of process numbers, which a resumed training may reverse
    return sorted((event.step, event.value) for event in events(run).Scalars(tag))


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


def config(run: Path, name: str) -> dict[str, Any]:
    """A config of a bundle, as it is written."""
    content: dict[str, Any] = yaml.safe_load((run / f"configs/{name}.yaml").read_text(encoding="utf-8"))
    return content


def given_of(*files: Path, **options: Any) -> GivenConfig:
    """What a run of these files with these options is given."""
    given: GivenConfig = Workflow([str(f) for f in files], workflow_type=None, logging_file=False, **options).parser[
        "given"
    ]
    return given

"""A folder with all that the pages take for given: DATA, RUN, SCANS, ..., small, and one training for all of them."""

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from code_blocks import ROOT, all_blocks
from made_once import MadeOnce
from PIL import Image

from aeflow_monai.cli.main import main


@pytest.fixture(scope="session")
def world(made_once: MadeOnce, volumes: Path, trained: Path) -> Path:
    """What the pages name; the blocks only read it."""
    return made_once("world", lambda folder: _write_world(folder, volumes, trained))


def _write_world(folder: Path, volumes: Path, trained: Path) -> None:
    folder.mkdir()
    for name in ("demo", ".aeflow_monai", "DATA", "SCANS", "NORMALS"):
        (folder / name).mkdir()
    for name in ("bundle", "configs"):  # of a clone
        (folder / name).symlink_to(ROOT / name)
    for name, path in {
        "RUN": trained,
        "demo/model": trained,
        ".aeflow_monai/phantom": volumes,
        "scan.nii.gz": volumes / "images/test_abnormal_000.nii.gz",
        "DATA/scans": volumes / "images",
        "DATA/masks": volumes / "masks",
    }.items():
        (folder / name).symlink_to(path)
    table = (volumes / "manifest.csv").read_text(encoding="utf-8").replace("images/", "scans/")
    (folder / "DATA/manifest.csv").write_text(table, encoding="utf-8")
    for name, wanted in (("SCANS", "test_abnormal_00[01]*"), ("NORMALS", "test_normal_*")):
        for scan in volumes.glob(f"images/{wanted}"):
            (folder / name / scan.name).symlink_to(scan)
    _write_classes(folder, volumes)
    _write_brats(folder / "BRATS", volumes)
    shutil.copytree(trained, folder / "APP/model/v3")
    scan, results = str(folder / "scan.nii.gz"), str(folder / "results")
    assert main(["predict", scan, "-m", str(trained), "-o", results, "--quiet"]) == 0
    (preset,) = (block for block in all_blocks() if block.language == "yaml")
    name, _, content = preset.code.removeprefix("# ").partition("\n")
    (folder / name).write_text(content, encoding="utf-8")


def _write_classes(folder: Path, volumes: Path) -> None:
    """A folder per class of 2D images: XRAY, and LABELLED with abnormal ones to train on."""
    for scan in volumes.glob("images/*.nii.gz"):
        split, kind, number = scan.name.removesuffix(".nii.gz").split("_")
        voxels = np.asarray(nib.as_closest_canonical(nib.load(scan)).dataobj)
        for k in (8, 10):
            grey = np.clip(voxels[:, :, k] / voxels.max() * 255, 0, 255).astype(np.uint8)
            for name, own in (("XRAY", split), ("LABELLED", "train" if kind == "abnormal" else split)):
                path = folder / name / own / kind.upper() / f"{split}_{number}_{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(grey).save(path)


def _write_brats(folder: Path, volumes: Path) -> None:
    """Six cases of BraTS, each with a tumour."""
    for i in range(6):
        case = folder / f"BraTS2021_0000{i}"
        case.mkdir(parents=True)
        for kind, name in (("images", "flair"), ("masks", "seg")):
            source = nib.load(volumes / kind / f"test_abnormal_00{i % 3}.nii.gz")
            moved = np.roll(np.asarray(source.dataobj), i // 3, axis=1)
            nib.save(nib.Nifti1Image(moved, source.affine), case / f"{case.name}_{name}.nii.gz")


@pytest.fixture(scope="session")
def small_training(tiny_training: dict[str, Any]) -> dict[str, Any]:
    """Options of a training of a second or two."""
    return tiny_training | {"train#slices#step": 2, "epochs": 1}


@pytest.fixture
def reader(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who reads a page: a link to each thing of the world, and results of their own."""
    for path in world.iterdir():
        if path.name == "results":  # of which `aeflow report` writes the page anew
            shutil.copytree(path, tmp_path / path.name)
        else:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path

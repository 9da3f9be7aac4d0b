"""Small images and lists on disk, written for the tests."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

# voxel axes run to the left, up and to the front, by 2, 2.5 and 3 mm
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 0, 3.0, -20], [0, 2.5, 0, 5], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).random((16, 18, 10), dtype=np.float32)


def write_image(path: Path, value: int = 7) -> Path:
    """A small image or volume whose every voxel holds the value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(np.full((2, 3, 2), value, np.uint8), np.eye(4)), path)
    elif path.suffix in (".png", ".jpg"):
        Image.fromarray(np.full((3, 2), value, np.uint8)).save(path)
    else:
        path.touch()
    return path


def write_images(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        write_image(folder / name)
    return folder


def write_csv(folder: Path, rows: Sequence[Sequence[str]], name: str = "manifest.csv") -> Path:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder / name


def write_json(folder: Path, content: Any, name: str = "dataset.json") -> Path:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder / name


def save_volume(file: Path, voxels: Any = VOXELS, affine: Any = AFFINE) -> str:
    nib.save(nib.Nifti1Image(np.asarray(voxels, dtype=np.float32), affine), file)
    return str(file)


def moved(mm: float) -> Any:
    """The affine of a volume that lies farther to the right."""
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine

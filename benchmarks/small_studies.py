"""Many small seeded 2D studies, 64 x 64, and a model of them, for the benchmarks of scale."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COMMAND = [sys.executable, "-m", "aeflow_monai.cli.main"]
OPTIONS = {
    "image_size": "[64,64]",
    "network_def#network#n_steps": "2",
    "network_def#network#hidden_channels": "8",
    "slicer#min_foreground": "0.0",
    "lesion_copies": "0",
    "learning_rate": "0.001",
}


def environment() -> dict[str, str]:
    """Return an environment with one thread per process, as on a node with a process per core."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def write_studies(folder: Path, n: int, seed: int) -> None:
    """Write n pictures; existing ones are kept."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:64, :64] / 64
    for number in range(n):
        wave = 0.5 + 0.3 * np.sin(6 * x + rng.random() / 2) * np.cos(5 * y + rng.random() / 2)
        picture = (wave + 0.03 * rng.standard_normal((64, 64))).clip(0, 1) * 255
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(path)


def write_list(path: Path, n: int) -> Path:
    """Write a list of n pictures in or below the list's folder."""
    path.write_text("".join(f"studies/{number // 1000:03d}/{number:06d}.png\n" for number in range(n)))
    return path


def train(work: Path) -> Path:
    """Train a small model on 120 pictures, unless it exists."""
    model = work / "RUN"
    if not (model / "models/model.pt").is_file():
        write_studies(work / "normal", 120, seed=1)
        options = [text for name, value in OPTIONS.items() for text in ("--set", f"{name}={value}")]
        given = [str(work / "normal/000"), "-o", str(model), "--device", "cpu", "--epochs", "3"]
        subprocess.run([*COMMAND, "train", *given, *options], check=True, env=environment())
    return model


def prediction(listed: Path, model: Path, out: Path, more: Sequence[str] = ()) -> list[str]:
    """Return the command that scores a list and writes the mask of each study."""
    given = [str(listed), "-m", str(model), "-o", str(out), "--outputs", "anomaly_mask", "--device", "cpu"]
    return [*COMMAND, "predict", *given, *more]

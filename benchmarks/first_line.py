"""Times from Enter to the first line and to the end, of `aeflow` and of the same run by MONAI's command.

A small bundle is trained, untimed. The commands run in turn, a few times; the table has medians. Usage:

    python benchmarks/first_line.py [--repeats 3]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from shared import arguments, bundle_command, machine, run_bundle

from aeflow_monai import config_files, write_phantom

TINY = {"image_size": "[64,64]", "epochs": 1, "network_def#network#n_steps": 1, "lesion_copies": 0}


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds to the first line of either stream, and to the end."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first = time.perf_counter() - start
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}.")
    return first, time.perf_counter() - start


def commands(run: Path, image: Path, folder: Path) -> Mapping[str, list[str]]:
    """Each command by its name, with a folder of its own for results."""
    aeflow = str(Path(sys.executable).with_name("aeflow"))
    scored = {"dataset_dir": image, "output_dir": folder / "monai", "overwrite": True}
    return {
        "aeflow --help": [aeflow, "--help"],
        "aeflow predict, one volume": [
            *(aeflow, "predict", str(image), "-m", str(run), "-o", str(folder / "aeflow"), "--overwrite")
        ],
        "python -m monai.bundle run, one volume": bundle_command([run / "configs/inference.yaml"], scored),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_phantom(folder / "data", n_train=4, n_test_normal=1, n_test_abnormal=1)
        run_bundle(config_files("train"), {"dataset_dir": data, "output_dir": folder / "run", **TINY}, "train")
        (image,) = data.glob("images/test_abnormal_*.nii.gz")
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(given.repeats):
            for title, command in commands(folder / "run", image, folder).items():
                found.setdefault(title, []).append(timed(command))
    print(machine())
    print("| command | s to the first line | s to the end |\n|---|---|---|")
    for title, times in found.items():
        first, end = (statistics.median(values) for values in zip(*times, strict=True))
        print(f"| `{title}` | {first:.2f} | {end:.1f} |")


if __name__ == "__main__":
    main()

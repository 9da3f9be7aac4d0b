"""Peak memory of the inference on a large volume and a large 2D image, with all default outputs.

The inputs are synthetic: an int16 volume (.nii.gz) of a noisy ellipsoid of tissue in noisy air, and a uint8 2D image
(.png). Each runs by the user's command in a process of its own, whose largest resident memory (VmHWM) is the peak. A
small input runs first, to measure the memory of Python, the libraries and the network. Usage:

    python benchmarks/peak_memory.py [--run RUN] [--shape 512 512 1000] [--axcodes RAS] [--picture 4096] [--evaluate]

Without --run, a bundle with untrained weights is used, which do not affect the memory. The volume takes about 10
minutes on two cores, and 2 GB of space for its maps in the temporary folder.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image
from shared import arguments, bundle_command, machine, peak_memory, write_rows, write_untrained

SMALL = (128, 128, 32)


class Cost(NamedTuple):
    """Largest resident memory of a process in MB (10^6 bytes), and its time in seconds."""

    megabytes: float
    seconds: float


def ellipsoid(shape: Sequence[int], k: int, share: float) -> np.ndarray:
    """Return the pixels of a slice inside an ellipsoid that fills this fraction of each axis."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    at = [2 * (index + 0.5) / size - 1 for index, size in zip((rows, columns, k), shape, strict=True)]
    return sum((x / share) ** 2 for x in at) < 1  # type: ignore[return-value]


def write_large_volume(path: Path, shape: Sequence[int], axcodes: str, mask: bool = False) -> None:
    """Write noisy tissue in noisy air, or a lesion mask, slice by slice."""
    rng = np.random.default_rng(0)
    voxels = np.empty(shape, np.uint8 if mask else np.int16, order="F")
    for k in range(shape[2]):
        inside = ellipsoid(shape, k, 0.2 if mask else 0.9)
        voxels[..., k] = inside if mask else rng.normal(-1000 + 1040 * inside, 20).astype(np.int16)
    orientation = nib.orientations.axcodes2ornt(tuple(axcodes))
    affine = nib.orientations.inv_ornt_aff(orientation, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def write_picture(path: Path, size: int) -> None:
    """Write a grey disc with noise."""
    disc = ellipsoid((size, size, 1), 0, 0.9)
    noise = np.random.default_rng(0).normal(120 * disc + 20, 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)


def cost_of(config: Path, data: Path, output_dir: Path) -> Cost:
    """Run a bundle on one input, and measure its process."""
    command = bundle_command([config], {"dataset_dir": data, "output_dir": output_dir, "device": "cpu"})
    start = time.perf_counter()
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, peak_memory(process.pid))
            time.sleep(0.05)
        assert process.stderr is not None
        if process.returncode:
            raise RuntimeError(process.stderr.read())
    return Cost(peak * 2**20 / 1e6, time.perf_counter() - start)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=lambda path: Path(path).absolute(), help="folder of a trained bundle")
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 1000])
    parser.add_argument("--axcodes", default="RAS", help="what the volume's axes run to")
    parser.add_argument("--picture", type=int, default=4096, help="rows and columns; none if 0")
    parser.add_argument("--evaluate", action="store_true", help="also evaluate the volume, with a mask")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = given.run or write_untrained(folder / "run")
        config = run / "configs/inference.yaml"
        write_large_volume(folder / "small.nii.gz", SMALL, given.axcodes)
        small = cost_of(config, folder / "small.nii.gz", folder / "small")
        print(machine())
        print("| input | peak memory, MB | times the small volume | s |\n|---|---|---|---|")

        def report(kind: str, cost: Cost) -> None:
            ratio = cost.megabytes / small.megabytes
            print(f"| {kind} | {cost.megabytes:.0f} | {ratio:.2f} | {cost.seconds:.0f} |", flush=True)

        report(f"volume {' x '.join(map(str, SMALL))}, inference", small)
        if given.picture:
            write_picture(folder / "large.png", given.picture)
            size = f"{given.picture} x {given.picture}"
            report(f"picture {size}, inference", cost_of(config, folder / "large.png", folder / "picture"))
        volume = folder / "large.nii.gz"
        write_large_volume(volume, given.shape, given.axcodes)
        size = " x ".join(map(str, given.shape))
        report(f"volume {size}, inference", cost_of(config, volume, folder / "volume"))
        if given.evaluate:
            write_large_volume(folder / "mask.nii.gz", given.shape, given.axcodes, mask=True)
            rows = [("large", volume.name, "test", 1, "mask.nii.gz")]
            write_rows(folder / "manifest.csv", ["case", "path", "split", "abnormal", "mask"], rows)
            report(
                f"volume {size}, evaluation",
                cost_of(run / "configs/evaluate.yaml", folder / "manifest.csv", folder / "evaluation"),
            )


if __name__ == "__main__":
    main()

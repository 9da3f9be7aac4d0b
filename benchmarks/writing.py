"""Time and size of writing five maps and a mask as NIfTI, by nibabel's default and by alternatives.

The maps are smooth like anomaly maps: a coarse random field, interpolated, 0 outside an ellipsoid. In each round every
way writes all six files, one way after the other; prints medians, and ratios to nibabel's default in the same round.
Usage:

    pip install isal zlib-ng
    python benchmarks/writing.py [--shape 240 240 155] [--repeats 3]
"""

from __future__ import annotations

import gzip
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from isal import igzip
from monai.data import MetaTensor
from shared import arguments, in_turn, median_ratio, own_measure, seconds
from torch.nn import functional as F
from zlib_ng import gzip_ng

from aeflow_monai.output import WriteMapsd

Array = npt.NDArray[Any]


def case(shape: list[int], n_maps: int = 5) -> dict[str, Array]:
    grid = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    brain = sum((axis / radius) ** 2 for axis, radius in zip(grid, (0.75, 0.9, 0.85), strict=True)) < 1
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for k in range(n_maps):
        coarse = torch.randn(1, 1, 16, 16, shape[2], generator=generator)  # slices are scored independently
        arrays[f"map{k}"] = (F.interpolate(coarse, size=shape, mode="trilinear")[0, 0] * brain).numpy()
    arrays["mask"] = (arrays["map0"] > 1).astype(np.uint8)
    return arrays


def rounded(array: Array, kept: int = 12) -> Array:
    """Round floats to fewer of their 23 mantissa bits, to nearest."""
    if array.dtype != np.float32:
        return array
    dropped = 23 - kept
    bits = array.view(np.uint32) + np.uint32(1 << (dropped - 1))
    return (bits >> dropped << dropped).view(np.float32)


def write(path: Path, array: Array, opener: Any = None, level: int = 1) -> None:
    image = nib.Nifti1Image(array, np.eye(4))
    if opener is None:
        nib.save(image, path)
    else:
        with opener.GzipFile(path, "wb", compresslevel=level) as file:
            image.to_stream(file)


def each(folder: Path, arrays: dict[str, Array], threads: int = 1, keep: bool = True, **options: Any) -> None:
    def one(name: str) -> None:
        write(folder / f"{name}.nii.gz", arrays[name] if keep else rounded(arrays[name]), **options)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, arrays))


def ours(folder: Path, arrays: dict[str, Array]) -> None:
    tensors = {name: MetaTensor(torch.from_numpy(array)[None]) for name, array in arrays.items()}
    WriteMapsd(list(arrays), folder)({"case": "case", **tensors})


WAYS: dict[str, Callable[[Path, dict[str, Array]], None]] = {
    "nibabel's default": each,
    "zlib, level 6": partial(each, opener=gzip, level=6),
    "zlib, level 1": partial(each, opener=gzip),
    "zlib, 2 threads": partial(each, opener=gzip, threads=2),
    "zlib, 12 bits": partial(each, opener=gzip, keep=False),
    "zlib-ng, level 1": partial(each, opener=gzip_ng),
    "zlib-ng, level 2": partial(each, opener=gzip_ng, level=2),
    "isal, level 0": partial(each, opener=igzip, level=0),
    "isal, level 1": partial(each, opener=igzip),
    "isal, level 2": partial(each, opener=igzip, level=2),
    "isal, 2 threads": partial(each, opener=igzip, threads=2),
    "isal, 12 bits": partial(each, opener=igzip, keep=False),
    "isal, 12 bits, 2 threads": partial(each, opener=igzip, keep=False, threads=2),
    "WriteMapsd": ours,
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[240, 240, 155])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    arrays = case(options.shape)
    megabytes = {}

    def measured(way: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            taken = seconds(lambda: WAYS[way](Path(folder), arrays))
            megabytes[way] = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        return taken

    ways = {way: partial(measured, way) for way in WAYS}
    times = in_turn(ways, options.repeats, warm_up=False, measure=own_measure)
    for way, taken in times.items():
        ratio = median_ratio(times["nibabel's default"], taken)
        print(f"{way:26s}{statistics.median(taken):6.2f} s{megabytes[way]:7.1f} MB{ratio:6.1f} times as fast")


if __name__ == "__main__":
    main()

"""Training slices per second from SliceDataset, in memory and on disk, against loading the volume for each slice.

All three use the same DataLoader (no workers, shuffled) and return the same preprocessed slices; the last one reads and
preprocesses the slice's volume each time, like a data set without a cache. For all three, files that were just written
are in the system's cache. Volumes are synthetic (240 x 240 x 155, a noisy ellipsoid in an empty background) unless a
folder of .nii.gz files is given. Usage:

    python benchmarks/slice_cache.py [--data DIR] [--output DIR] [--volumes 2] [--seed 0] [--loaded 8]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader
from shared import LARGE, arguments, in_turn, machine, median_ratio, own_measure, template, write_volume
from torch.utils.data import Dataset, Subset

from aeflow_monai import Slicer
from aeflow_monai.data import SliceDataset
from aeflow_monai.engine.inference.allocator import keep_freed_memory
from aeflow_monai.files import write_json

Transform = Callable[[dict[str, Any]], dict[str, Any]]


class LoadEach(Dataset):
    """A data set of the same slices that reads and preprocesses the volume of each."""

    def __init__(self, index: list[dict[str, Any]], transform: Transform, slicer: Slicer) -> None:
        self.index = index
        self.transform = transform
        self.slicer = slicer

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, Any]:
        names = self.index[number]
        volume = self.transform({"image": names["file"], "case": names["case"]})["image"].as_tensor()
        return {"image": self.slicer.slices(volume, names["axis"], torch.tensor([names["slice"]]))[0], **names}


def slices_per_second(dataset: Dataset, batch_size: int, at_least: float = 0.0) -> float:
    """Measure slices per second over whole epochs, for at least `at_least` seconds."""
    next(iter(DataLoader(dataset, batch_size=min(batch_size, 2))))  # first calls allocate
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < at_least:
        for batch in DataLoader(dataset, batch_size=batch_size, shuffle=True):
            count += len(batch["image"])
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="a folder of your own volumes")
    parser.add_argument("--output", type=Path, help="where slice_cache.json is written")
    parser.add_argument("--volumes", type=int, default=2, help="made up, or the first of the folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--loaded", type=int, default=8, help="slices of a round whose volume is read for each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--config", help="on top of train.yaml, for its preprocessing and slices: name of a preset, or path"
    )
    given = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(given.seed)
    print(f"seed {given.seed}; {machine()}")

    config = template(given.config) if given.config else template(**LARGE)
    transform, slicer = config.get_parsed_content("preprocessing"), config.get_parsed_content("slicer")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.data is None:
            for number in range(given.volumes):
                write_volume(folder / f"volume_{number}.nii.gz", given.seed + number)
        files = sorted((given.data or folder).glob("*.nii.gz"))[: given.volumes]
        data = [{"image": str(file), "case": file.name} for file in files]
        start = time.perf_counter()
        in_memory = SliceDataset(data, transform, slicer)
        making = time.perf_counter() - start
        on_disk = SliceDataset(data, transform, slicer, folder=folder / "slices")
        each = LoadEach(in_memory.index, transform, slicer)
        if not all(torch.equal(in_memory[0]["image"], other[0]["image"]) for other in (on_disk, each)):
            raise RuntimeError("The three ways give different slices.")
        print(
            f"{len(in_memory)} slices {in_memory.shape} of {len(data)} volumes, made once in {making:.1f} s", flush=True
        )

        def some() -> Subset:
            return Subset(each, torch.randperm(len(each))[: given.loaded].tolist())

        ways = {
            "memory": lambda: slices_per_second(in_memory, given.batch_size, at_least=1),
            "disk": lambda: slices_per_second(on_disk, given.batch_size, at_least=1),
            "volume read for each slice": lambda: slices_per_second(some(), given.batch_size),
        }
        rates = in_turn(ways, given.repeats, warm_up=False, measure=own_measure)
    report: dict[str, Any] = {"seed": given.seed, "n_slices": len(in_memory), "shape": in_memory.shape}
    report |= {"seconds_to_make": making, "slices_per_second": rates, "ratio": {}}
    slow = rates["volume read for each slice"]
    for way, measured in rates.items():
        ratio = median_ratio(measured, slow)
        report["ratio"][way] = ratio
        print(f"{way:>27}: {statistics.median(measured):9.2f} slices per second, ratio {ratio:7.1f}")
    if given.output:
        write_json(given.output / "slice_cache.json", report)
    if min(report["ratio"]["memory"], report["ratio"]["disk"]) < 20:
        raise SystemExit("FAILED: a cached slice has to come at least 20 times as fast.")


if __name__ == "__main__":
    main()

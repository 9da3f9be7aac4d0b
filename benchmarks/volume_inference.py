"""Cost of inference on volumes: total time against the network alone, and memory of many volumes against one.

The volume is synthetic (240 x 240 x 155, a noisy ellipsoid in an empty background) unless one is given. Reading,
preprocessing, network, inversion and writing of all default outputs are timed by running inference.yaml; the network
alone processes the same non-empty slices, already cut, batch by batch on all cores. Inference itself calls it with half
batches in two threads on half of the cores each, which recovers a part of the cost. Both run in turn in one process;
another process on the same cores distorts the ratio. Usage:

    python benchmarks/volume_inference.py [--image FILE] [--repeats 3] [--volumes 20]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from shared import (
    LARGE,
    arguments,
    in_turn,
    machine,
    median_ratio,
    own_measure,
    peak_memory,
    seconds,
    write_untrained,
    write_volume,
)

from aeflow_monai import Model, Workflow
from aeflow_monai.engine.inference.allocator import keep_freed_memory


def evaluator_of(run: Path, dataset_dir: Path, output_dir: Path) -> Any:
    """Return the evaluator of a bundle's inference.yaml, with its model."""
    options = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir), "device": "cpu"}
    workflow = Workflow(str(run / "configs/inference.yaml"), workflow_type="infer", logging_file=False, **options)
    return workflow.parser.get_parsed_content("evaluator")


def slice_batches(model: Model, file: Path) -> list[torch.Tensor]:
    """Return the slices of a volume that inference processes, already cut."""
    volume = model.preprocessing({"image": str(file), "case": file.name})["image"].as_tensor()
    slicer = model.inferer.slicer
    indices = slicer.chosen(volume, "axial").split(model.inferer.batch_size)
    return [slicer.slices(volume, "axial", some) for some in indices]


def peak_of(run: Path, volume: Path, count: int) -> float:
    """Return the peak memory in MiB of the inference on `count` volumes, in a process of its own."""
    with tempfile.TemporaryDirectory() as data:
        for number in range(count):
            (Path(data) / f"volume_{number:02d}.nii.gz").symlink_to(volume)
        command = [sys.executable, __file__, "--measure", data, str(run)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.splitlines()[-1])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--image", type=Path, help="a volume of your own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--volumes", type=int, default=20)
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.measure:
            data, run = given.measure
            evaluator_of(run, data, folder / "maps").run()
            print(peak_memory())
            return
        volume = folder / "volume.nii.gz"
        if given.image:
            shutil.copy(given.image, volume)
        else:
            write_volume(volume)
        run = write_untrained(folder / "run", **LARGE)
        print(machine())
        model = Model(run)
        batches = slice_batches(model, volume)

        ways = {
            "whole": lambda: seconds(evaluator_of(run, volume, folder / "maps").run),
            "bare network": lambda: seconds(lambda: [model.detector(batch) for batch in batches]),
        }
        with torch.no_grad():
            times = in_turn(ways, given.repeats, measure=own_measure)
        for all_of_it, alone in zip(*times.values(), strict=True):
            print(f"whole {all_of_it:.2f} s, bare network {alone:.2f} s, ratio {all_of_it / alone:.2f}")
        count = sum(map(len, batches))
        print(f"median ratio {median_ratio(*times.values()):.2f}, over {count} slices")
        if given.volumes:
            one, many = (peak_of(run, volume, count) for count in (1, given.volumes))
            print(f"peak memory: {one:.0f} MB for 1 volume, {many:.0f} MB for {given.volumes}, ratio {many / one:.2f}")


if __name__ == "__main__":
    main()

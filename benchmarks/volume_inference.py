"""Cost of inference on volumes: all of it against the bare network, and memory of many volumes against one.

The volume is made up (240 x 240 x 155, a noisy ellipsoid in an empty background) unless one is given. Reading,
preprocessing, network, inversion and writing of all that is on by default are timed by running inference.yaml; the bare
network is the same network over the same non-empty slices, already cut, called batch by batch on all cores. Inference
itself calls it with half batches in two threads on half of the cores each, so part of its cost is won back. Both run in
turn in one process; another process on the same cores spoils the ratio. Usage:

    python benchmarks/volume_inference.py [--image FILE] [--repeats 3] [--volumes 20]
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from aeflow_monai.engine.workflow import keep_freed_memory
from monai.bundle import ConfigParser

INFERENCE = Path(__file__).parent.parent / "bundle/configs/inference.yaml"


def write_volume(path: Path, seed: int = 0) -> None:
    grid = np.indices((240, 240, 155), np.float32)
    centre, axes = np.reshape([120, 120, 75], (3, 1, 1, 1)), np.reshape([70, 88, 70], (3, 1, 1, 1))
    inside = (((grid - centre) / axes) ** 2).sum(0) < 1
    texture = np.random.default_rng(seed).normal(600, 120, inside.shape)
    nib.save(nib.Nifti1Image((inside * texture).astype(np.int16), np.diag([-1, -1, 1, 1])), path)


def write_checkpoint(path: Path, options: dict[str, Any]) -> None:
    """Weights do not change the time, so they are as they are made; thresholds are set for the writers."""
    parser = ConfigParser(options | {"initial_weights": "wheel"})
    parser.read_config(str(INFERENCE))
    parser.update(options | {"initial_weights": "wheel"})
    network = parser.get_parsed_content("network_def")
    for name in ("case_threshold", "slice_threshold", "map_threshold"):
        network.get_buffer(name).fill_(1e9)
    torch.save({"model": network.state_dict()}, path)


def make_evaluator(options: dict[str, Any]) -> tuple[ConfigParser, Any]:
    parser = ConfigParser()
    parser.read_config(str(INFERENCE))
    parser.update(options)
    return parser, parser.get_parsed_content("evaluator")


def bare_seconds(parser: ConfigParser) -> tuple[float, int]:
    """The network over the slices of the first volume."""
    volume = parser.get_parsed_content("preprocessing")(parser.get_parsed_content("datalist")[0])["image"]
    volume = volume.as_tensor()
    slicer, network = parser.get_parsed_content("slicer"), parser.get_parsed_content("network").eval()
    indices = slicer.chosen(volume, "axial")
    batches = [slicer.slices(volume, "axial", some) for some in torch.split(indices, parser.get("sw_batch_size"))]
    start = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    return time.perf_counter() - start, len(indices)


def peak_megabytes(folder: Path, volumes: int, options: dict[str, Any]) -> float:
    """In a process of its own, since a peak cannot be taken back."""
    with tempfile.TemporaryDirectory() as data:
        for number in range(volumes):
            (Path(data) / f"volume_{number:02d}.nii.gz").symlink_to(folder / "volume.nii.gz")
        command = [sys.executable, __file__, "--measure", data, "--checkpoint", str(options["ckpt_path"])]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a volume of your own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--volumes", type=int, default=20)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    given = parser.parse_args()
    keep_freed_memory()
    options: dict[str, Any] = {"image_size": [240, 240], "fit": "pad", "device": "cpu"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options |= {"output_dir": str(folder / "maps"), "results_dir": str(folder / "maps")}
        if given.measure:
            options |= {"dataset_dir": given.measure, "ckpt_path": given.checkpoint}
            make_evaluator(options)[1].run()
            # not by getrusage, whose peak a new process inherits from the one that started it
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
            return
        volume = folder / "volume.nii.gz"
        if given.image:
            shutil.copy(given.image, volume)
        else:
            write_volume(volume)
        options |= {"dataset_dir": str(volume), "ckpt_path": str(folder / "model.pt")}
        write_checkpoint(folder / "model.pt", options)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
        ratios = []
        for turn in range(given.repeats + 1):  # the first turn warms up
            config, evaluator = make_evaluator(options)
            start = time.perf_counter()
            evaluator.run()
            whole = time.perf_counter() - start
            bare, count = bare_seconds(config)
            if turn:
                ratios.append(whole / bare)
                print(f"whole {whole:.2f} s, bare network {bare:.2f} s over {count} slices, ratio {ratios[-1]:.2f}")
        print(f"median ratio {sorted(ratios)[len(ratios) // 2]:.2f}")
        if given.volumes:
            one, many = (peak_megabytes(folder, count, options) for count in (1, given.volumes))
            print(f"peak memory: {one:.0f} MB for 1 volume, {many:.0f} MB for {given.volumes}, ratio {many / one:.2f}")


if __name__ == "__main__":
    main()

"""Shared code of the benchmarks: bundle commands, timing in turns, tables, synthetic volumes, and the machine."""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser

from aeflow_monai import Workflow, config_files
from aeflow_monai.about import versions
from aeflow_monai.engine.bundles.bundle import write_bundle
from aeflow_monai.files import read_json

ROOT = Path(__file__).parent.parent
_COMMAND = "import sys; from aeflow_monai.cli.main import main; sys.exit(main())"  # `aeflow` of any checkout
LARGE = {"image_size": [240, 240], "slicer#fit": "pad"}  # training options for volumes of `write_volume`


def arguments(description: str, *paths: str) -> argparse.ArgumentParser:
    """Return a parser of the command line, with a required path for each of these names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in paths:
        parser.add_argument(f"--{name}", type=lambda path: Path(path).absolute(), required=True)
    return parser


def parse_with_options(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parse the parser's own arguments, and all others as options of the bundle."""
    given, others = parser.parse_known_args()
    if len(others) % 2 or not all(name.startswith("--") for name in others[::2]):
        parser.error(f"options of the bundle are given as --name value; got {' '.join(others)}")
    return given, {name[2:]: value for name, value in zip(others[::2], others[1::2], strict=True)}


def template(*configs: str | Path, **options: Any) -> ConfigParser:
    """Return the bundle's train.yaml with configs, by name or path, and options, to instantiate parts of it."""
    parser = ConfigParser()
    parser.read_config(config_files("train", *map(str, configs)))
    parser.update({"device": "cpu", **options})
    return parser


def bundle_command(configs: Sequence[str | Path], options: Mapping[str, Any], *verb: str) -> list[str]:
    """Return the command line `python -m monai.bundle run ...`, as a user writes it."""
    files = [str(path) for path in configs]
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        *verb,
        "--config_file",
        files[0] if len(files) == 1 else str(files),
    ]
    return [*command, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


def run_bundle(configs: Sequence[str | Path], options: Mapping[str, Any], *verb: str) -> float:
    """Run the bundle in a process of its own, and return its time in seconds."""
    return seconds(lambda: subprocess.run(bundle_command(configs, options, *verb), check=True))


def evaluate(run: Path, dataset_dir: Path, output_dir: Path) -> dict[str, Any]:
    """Evaluate a trained bundle in a process of its own, and return its metrics.json."""
    run_bundle([run / "configs/evaluate.yaml"], {"dataset_dir": dataset_dir, "output_dir": output_dir})
    return read_json(output_dir / "metrics.json")


def seconds(function: Callable[[], object]) -> float:
    """Return the time of a call in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: bool = True,
    measure: Callable[[Callable[[], Any]], float] = seconds,
) -> dict[str, list[float]]:
    """Measure several ways in rounds, in turn, so that a drift of the machine's speed affects all equally.

    Args:
        ways: functions to call, by name.
        rounds: number of measured rounds.
        warm_up: start with a round that is not measured.
        measure: returns the measurement of a call; see also `own_measure`.
    """
    found = [{name: measure(way) for name, way in ways.items()} for _ in range(rounds + warm_up)][int(warm_up) :]
    return {name: [measured[name] for measured in found] for name in ways}


def own_measure(way: Callable[[], float]) -> float:
    """Return the measurement that a way makes itself."""
    return way()


def median_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the median of the ratios of two ways within the same round."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def peak_memory(process: int | str = "self") -> float:
    """Return the largest resident memory of a process so far, in MiB; 0 if /proc does not have it.

    It does not use getrusage, since a new process inherits the peak of its parent.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


def processor() -> str:
    """Return the machine's name of its processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def machine() -> str:
    """Describe the machine and versions that times depend on."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}"


def commit() -> str:
    """Return the commit of this code, marked if there are local changes."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def phases_of(
    checkout: Path, words: Sequence[str | Path], log: Path, marks: Mapping[str, str], home: Path
) -> dict[str, float]:
    """Return seconds of the phases of `aeflow WORDS` in another checkout, in total, and of processor time.

    Args:
        checkout: checkout of this project.
        words: arguments of the command.
        log: log of the command, whose lines begin with their time.
        marks: by phase, a text in its last line; "" for the first line of the log.
        home: AEFLOW_HOME, and working directory of the command.
    """
    command = [sys.executable, "-c", _COMMAND, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "AEFLOW_HOME": str(home)}
    before, start = os.times(), time.time()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=home
    )
    if done.returncode:
        raise SystemExit(done.stdout)
    ended, after = time.time(), os.times()
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line[:2] == "20"]
    found, last = {}, start
    for phase, mark in marks.items():
        line = [line for line in lines if mark in line][-1] if mark else lines[0]
        until = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        found[phase], last = until - last, until
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {**found, "exit": ended - last, "all of it": ended - start, "processor time": used}


def print_phases(found: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print a Markdown table of the `phases_of` the runs "before" and "now", without the first run of each."""
    print("| s | before | now | ratio |\n|---|---|---|---|")
    for phase in found["now"][0]:
        before, now = ([each[phase] for each in found[way][1:]] for way in ("before", "now"))
        ratio = statistics.median(b / a for a, b in zip(before, now, strict=True))
        print(f"| {phase} | {statistics.median(before):.1f} | {statistics.median(now):.1f} | {ratio:.2f} |")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, by column."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, such as a manifest.csv; its folder is created if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])


def table_of_sets(found: Mapping[str, Mapping[str, float]], title: str = "method") -> str:
    """Format a table of AUROC by set and method in Markdown, best mean first, of methods that all sets have."""
    methods = [name for name in next(iter(found.values())) if all(name in of_set for of_set in found.values())]
    auroc = np.array([[of_set[method] for of_set in found.values()] for method in methods])
    ranks = 1 + (auroc[None] > auroc[:, None]).sum(axis=1)
    gaps = (auroc - auroc.max(axis=0)).min(axis=1)
    head = [title, *found, "mean", "mean rank", "worst gap"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for i in np.argsort(-auroc.mean(axis=1)):
        cells = [f"{value:.3f}" for value in (*auroc[i], auroc[i].mean())]
        lines.append(f"| {' | '.join([methods[i], *cells])} | {ranks[i].mean():.1f} | {gaps[i]:.3f} |")
    return "\n".join(lines) + "\n"


def xray_patient(path: str | Path) -> str:
    """Return the patient in the name of a chest X-ray (person23_bacteria_76, NORMAL2-IM-0523-0001), else the name."""
    known = re.match(r"person\d+(?=_)|(?:NORMAL2-)?IM-\d+(?=-)", Path(path).name)
    return known[0] if known else Path(path).stem


def write_volume(path: Path, seed: int = 0) -> None:
    """Write a noisy ellipsoid in an empty background, 240 x 240 x 155."""
    grid = np.indices((240, 240, 155), np.float32)
    centre, axes = np.reshape([120, 120, 75], (3, 1, 1, 1)), np.reshape([70, 88, 70], (3, 1, 1, 1))
    inside = (((grid - centre) / axes) ** 2).sum(0) < 1
    texture = np.random.default_rng(seed).normal(600, 120, inside.shape)
    nib.save(nib.Nifti1Image((inside * texture).astype(np.int16), np.diag([-1, -1, 1, 1])), path)


def write_untrained(folder: Path, **options: Any) -> Path:
    """Write a bundle with untrained weights, which take the same time but detect nothing.

    Args:
        folder: folder of the bundle.
        options: options of train.yaml.

    Returns:
        The folder.
    """
    parser = Workflow(config_files("train"), workflow_type="train", logging_file=False, **options).parser
    detector = parser.get_parsed_content("network_def")
    for name in detector.score.thresholds:
        detector.score.get_buffer(name).fill_(1e9)
    write_bundle(
        folder, detector, parser["given"].content, {"seed": 0, "specificity": 0.95, "data": {}, "versions": versions()}
    )
    return folder

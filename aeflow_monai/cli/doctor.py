"""`aeflow doctor`: check that all requirements are installed and work, and name the remedy if not."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement

from aeflow_monai.cli.bundle_run import run_bundle
from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.files import home

__all__ = ["State", "doctor", "unmet_requirements"]

_FREE_GB = 5.0  # space that a training and its maps may need
# Options of a training of a few seconds, which detects nothing, but runs every step.
_TINY = {
    "image_size": "[64,64]",
    "epochs": "1",
    "network_def#network#n_steps": "1",
    "lesion_copies": "0",
    "acquisition_copies": "0",
    "device": "cpu",
}


State = Literal["ok", "note", "FAIL"]


class _Finding(NamedTuple):
    """The result of a check: its subject, its state (a note is not a fault), the finding, and a remedy."""

    subject: str
    state: State
    found: str
    remedy: str = ""


def doctor(given: argparse.Namespace, terminal: Terminal) -> None:
    """Run all checks, and print the findings.

    Raises:
        ValueError: a requirement is missing or does not work.
    """
    failed = []
    looks = (_python, _packages, _device, _threads, _disk, _network, _label_app, _whole_way(given.model))
    for look in looks:
        for finding in _findings(look, terminal):
            terminal.result(f"{finding.state:<4}  {finding.subject}: {finding.found}")
            if finding.remedy:
                terminal.result(f"      {finding.remedy}")
            if finding.state == "FAIL":
                failed.append(finding.subject)
    if failed:
        raise ValueError(f"What does not work: {', '.join(failed)}. What to do stands above.")
    terminal.result("Everything that is needed is here and works.")


def _findings(look: Callable[[], Iterator[_Finding]], terminal: Terminal) -> Iterator[_Finding]:
    """Yield the findings of a check; an error becomes a finding, so that the other checks still run."""
    try:
        yield from look()
    except Exception as error:
        from aeflow_monai.errors import describe_error

        if terminal.verbose:
            terminal.traceback()
        remedy = "Mend what the lines above name; else install the package anew. aeflow doctor -v shows the traceback."
        yield _Finding(look.__name__.strip("_").replace("_", " "), "FAIL", describe_error(error), remedy)


def _python() -> Iterator[_Finding]:
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13)
    remedy = "" if fits else "Use Python 3.10 to 3.13: other versions are not tested."
    yield _Finding("Python", "ok" if fits else "note", sys.version.split()[0], remedy)


def _packages() -> Iterator[_Finding]:
    from aeflow_monai.about import versions

    unmet = list(unmet_requirements(requires("aeflow_monai") or ()))
    for requirement, found in unmet:
        remedy = f"pip install {shlex.quote(requirement)}"
        yield _Finding("packages", "FAIL", f"{requirement} is needed, and {found or 'not'} installed", remedy)
    if not unmet:
        here = [f"{name} {found}" for name, found in versions().items() if name != "python"]
        yield _Finding("packages", "ok", ", ".join(here))


def unmet_requirements(requirements: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the requirements of a package that this environment does not meet, with the installed version.

    Args:
        requirements: requirements in the form of package metadata; those of extras are ignored.

    Example:
        >>> list(unmet_requirements(["numpy>=1", "numpy>=999; extra == 'fast'", "no-such-package>=2"]))
        [('no-such-package>=2', '')]
    """
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = ""
        if not found or not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name}{requirement.specifier}", found


def _device() -> Iterator[_Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield _Finding("device", "ok", ", ".join(names))
        return
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs"
    yield _Finding("device", "note", f"no GPU is found, {built}", "A CPU is enough; a training takes minutes to hours.")


def _threads() -> Iterator[_Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    found = f"{threads} for {cores} cores; {load:.1f} processes wish to run"
    if threads > cores or (threads > 1 and load > 0.5 * cores):
        remedy = "Competing threads slow runs down: set OMP_NUM_THREADS=1, or GOMP_SPINCOUNT=1000 as `aeflow` does."
        yield _Finding("threads", "note", found, remedy)
    else:
        yield _Finding("threads", "ok", found)


def _disk() -> Iterator[_Finding]:
    places: dict[Path, tuple[State, str]] = {
        Path(home()): ("FAIL", "Set the environment variable AEFLOW_HOME to a folder that can be written to."),
        Path.cwd(): ("note", "Give folders elsewhere with -o."),
    }
    for place, if_closed in places.items():
        there = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(there).free / 1e9
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            found = f"nothing can be written to {place}: {error.strerror}"
            yield _Finding("disk", if_closed[0], found, if_closed[1])
            continue
        if free < _FREE_GB:
            remedy = "Maps of large volumes take gigabytes: free space."
            yield _Finding("disk", "note", f"{free:.1f} GB free at {place}", remedy)
        else:
            yield _Finding("disk", "ok", f"{free:.0f} GB free at {place}")


def _network() -> Iterator[_Finding]:
    import torch
    from monai.bundle import ConfigParser

    from aeflow_monai.engine.config.template import config_files

    parser = ConfigParser()
    parser.read_config(config_files("train"))
    parser["device"] = "cpu"
    network = parser.get_parsed_content("network_def").network.eval()
    start = time.perf_counter()
    with torch.no_grad():
        network(torch.rand(1, 1, 128, 128))
    took = 1000 * (time.perf_counter() - start)
    yield _Finding("network", "ok", f"weights are here, a slice goes through the network in {took:.0f} ms")


def _label_app() -> Iterator[_Finding]:
    if find_spec("monailabel") is None:
        remedy = "Only `aeflow label` needs it, from an environment of its own: see docs/monai_label.md."
        yield _Finding("MONAI Label", "note", "is not installed here", remedy)
    else:
        yield _Finding("MONAI Label", "ok", "is installed")


def _whole_way(model: str | None) -> Callable[[], Iterator[_Finding]]:
    """Return a check of the whole pipeline on a volume: a short training if no model is given, and a prediction."""

    def whole_way() -> Iterator[_Finding]:
        from aeflow_monai import Model, write_phantom
        from aeflow_monai.engine.config.template import config_files

        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = write_phantom(folder / "data", n_train=4, n_test_normal=1, n_test_abnormal=1)
            run = Path(model) if model else folder / "run"
            if not model:
                options: dict[str, Any] = {"dataset_dir": str(data), "output_dir": str(run), **_TINY}
                run_bundle("train", config_files("train"), options, run, Terminal(quiet=True))
            opened = Model(run)
            (volume,) = sorted(data.rglob("*abnormal*.nii.gz"))[:1]
            prediction = opened.predict(_with_channels(volume, opened.detector.network.encoder.in_channels))
            took = time.perf_counter() - start
            what = f"a volume was scored with {model}" if model else "a small model was trained and scored a volume"
            yield _Finding("whole way", "ok", f"{what}: {prediction.anomaly_score:.2f}, in {took:.0f} s")

    return whole_way


def _with_channels(volume: Path, channels: int) -> Path:
    """Repeat the only channel of a volume as often as a model needs it."""
    import nibabel
    import numpy as np

    if channels == 1:
        return volume
    image = nibabel.load(volume)
    stacked = np.stack([np.asanyarray(image.dataobj)] * channels, axis=-1)
    path = volume.with_name(f"channels_{volume.name}")
    nibabel.save(nibabel.Nifti1Image(stacked, image.affine), path)
    return path

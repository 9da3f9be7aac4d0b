"""`aeflow doctor`: whether what is needed is here and works, and what to do if not."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aeflow_monai.cli.bundle_run import run_bundle
from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.files import home

__all__ = ["doctor"]

_FREE_GB = 5.0  # that a training with its maps may take
# A training of seconds, which finds nothing, but goes through everything.
_TINY = {
    "image_size": "[64,64]",
    "epochs": "1",
    "network_def#network#n_steps": "1",
    "lesion_copies": "0",
    "device": "cpu",
}


class _Finding(NamedTuple):
    """What was looked at, whether it is well (None: not wrong, but worth knowing), what was found, and a remedy."""

    subject: str
    well: bool | None
    found: str
    remedy: str = ""


def doctor(given: argparse.Namespace, terminal: Terminal) -> None:
    """Look at everything, and say what was found.

    Raises:
        ValueError: something that is needed is missing or does not work.
    """
    ill = []
    for look in (_python, _packages, _device, _threads, _disk, _network, _label_app, _whole_way(given.model, terminal)):
        for finding in _looked(look):
            mark = {True: "ok  ", None: "note", False: "FAIL"}[finding.well]
            terminal.result(f"{mark}  {finding.subject}: {finding.found}")
            if finding.remedy:
                terminal.result(f"      {finding.remedy}")
            if finding.well is False:
                ill.append(finding.subject)
    if ill:
        raise ValueError(f"Not well: {', '.join(ill)}. The remedies stand above.")
    terminal.result("Everything that is needed is here and works.")


def _looked(look: Callable[[], Iterator[_Finding]]) -> Iterator[_Finding]:
    """What is found; whatever a look raises is a finding, since the others should be looked at too."""
    try:
        yield from look()
    except Exception as error:
        from aeflow_monai.errors import describe_error

        yield _Finding(look.__name__.strip("_").replace("_", " "), False, describe_error(error))


def _python() -> Iterator[_Finding]:
    version = sys.version.split()[0]
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13)
    remedy = "" if fits else "Use Python 3.10 to 3.13: other versions are not tested."
    yield _Finding("Python", True if fits else None, version, remedy)


def _packages() -> Iterator[_Finding]:
    from aeflow_monai.about import versions

    found = {name: version for name, version in versions().items() if name != "python"}
    yield _Finding("packages", True, ", ".join(f"{name} {version}" for name, version in found.items()))


def _device() -> Iterator[_Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield _Finding("device", True, ", ".join(names))
        return
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs"
    yield _Finding("device", None, f"no GPU is found, {built}", "A CPU is enough; a training takes minutes to hours.")


def _threads() -> Iterator[_Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    found = f"{threads} for {cores} cores, of which others use {load:.1f}"
    if threads > cores or (threads > 1 and load > 0.5 * cores):
        yield _Finding("threads", None, found, "Competing threads slow runs down several times: set OMP_NUM_THREADS=1.")
    else:
        yield _Finding("threads", True, found)


def _disk() -> Iterator[_Finding]:
    for place in (Path(home()), Path.cwd()):
        there = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(there).free / 1e9
        if not os.access(there, os.W_OK):
            yield _Finding("disk", False, f"nothing can be written to {there}", "Set AEFLOW_HOME to another folder.")
        else:
            remedy = "" if free > _FREE_GB else "Maps of large volumes take gigabytes: free space."
            yield _Finding("disk", True if free > _FREE_GB else None, f"{free:.0f} GB free at {place}", remedy)


def _network() -> Iterator[_Finding]:
    import torch
    from monai.bundle import ConfigParser

    from aeflow_monai.engine.config import config_files

    parser = ConfigParser()
    parser.read_config(config_files("train"))
    parser["device"] = "cpu"
    encoder = parser.get_parsed_content("network_def").network.encoder.eval()
    start = time.perf_counter()
    with torch.no_grad():
        encoder(torch.rand(1, 1, 128, 128))
    took = 1000 * (time.perf_counter() - start)
    yield _Finding("network", True, f"the encoder's weights are here, a slice goes through it in {took:.0f} ms")


def _label_app() -> Iterator[_Finding]:
    from importlib.util import find_spec

    if find_spec("monailabel") is None:
        remedy = "Only `aeflow label` needs it, from an environment of its own: see docs/monai_label.md."
        yield _Finding("MONAI Label", None, "is not installed here", remedy)
    else:
        yield _Finding("MONAI Label", True, "is installed")


def _whole_way(model: str | None, terminal: Terminal) -> Callable[[], Iterator[_Finding]]:
    """A volume through everything: a training of seconds if no model is given, and a prediction."""

    def whole_way() -> Iterator[_Finding]:
        from aeflow_monai import predict, write_phantom
        from aeflow_monai.engine.config import config_files

        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = write_phantom(folder / "data", n_train=4, n_test_normal=1, n_test_abnormal=1)
            run = Path(model) if model else folder / "run"
            if not model:
                options: dict[str, Any] = {"dataset_dir": str(data), "output_dir": str(run), **_TINY}
                run_bundle("train", config_files("train"), options, run, Terminal(quiet=True))
            (image,) = sorted(data.rglob("*abnormal*.nii.gz"))[:1]
            prediction = predict(str(image), run)
            took = time.perf_counter() - start
            what = f"a volume was scored with {model}" if model else "a small model was trained and scored a volume"
            yield _Finding("whole way", True, f"{what}: {prediction.anomaly_score:.3g}, in {took:.0f} s")

    return whole_way

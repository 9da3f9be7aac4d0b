"""Kills runs at random moments, runs them again as the README says, and compares the results with undisturbed ones.

    python benchmarks/robustness/kills.py --output FOLDER --n 50 --seed 0
    python benchmarks/robustness/kills.py --output FOLDER --only 7          that kill again; its log stays

Six phases take their turn: building the cache, training, the calibration at its end, evaluation, inference, and the
calibration of a bundle. A moment is a seeded event of the file system in that phase (a file below the work folder is
opened for writing, renamed, removed, a folder made), as the undisturbed run had them, or a random time between two of
them. There the process gets SIGKILL. Then no file under a final name may differ
from the undisturbed run's, and the next run must end with the same results and leave nothing else.

Each run is `python -m monai.bundle run ...` in a process that is forked from this one, which spares the imports.
Writes kills.csv, one line for each kill, and table.md. An interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import atexit
import csv
import re
import runpy
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("agg")

import monai.bundle.scripts  # noqa: F401 - what a run needs, before processes are forked
import nibabel as nib
import numpy as np
from torch.utils import tensorboard  # noqa: F401

import aeflow_monai.label  # noqa: F401

sys.path.append(str(Path(__file__).parent.parent))
from digests import digests_below, model_is_its_own
from shared import ROOT, bundle_command, write_rows

from aeflow_monai.engine.config.config_text import read_config
from aeflow_monai.files import read_json
from aeflow_monai.imports import import_names

import_names("aeflow_monai.data", "aeflow_monai.engine", "aeflow_monai.output")  # likewise
PHASES = ("cache", "training", "calibration at its end", "evaluation", "inference", "calibration of a bundle")
OUTCOMES = ("recovered", "file not whole", "not recovered", "other results", "leftovers")
COLUMNS = ("kill", "phase", "moment", "delay", "by", "outcome", "detail")
TINY = {
    "image_size": "[32,32]",
    "backbone": "test_resnet",
    "encoder_weights": "random",
    "network_def#network#n_steps": 2,
    "network_def#network#hidden_channels": 4,
    "slicer#min_foreground": 0.0,
    "calibration_fraction": 0.3,
    "lesion_copies": 1,
    "epochs": 2,
    "device": "cpu",
}
# of the place where a run writes, by its verb
WRITTEN = {"train": "RUN", "evaluate": "RESULTS", "inference": "MAPS", "calibrate": "SITE"}


class Moment(NamedTuple):
    """When a run is killed: at an event, by its number, or some seconds after it."""

    event: int
    delay: float


class Run(NamedTuple):
    """How a run ended: its exit code, None if it was killed, and its events, as seconds and words."""

    code: int | None
    events: list[tuple[float, str]]


# --- one run --------------------------------------------------------------------------------------------------------


def run(command: Sequence[str], work: Path, log: Path, moment: Moment | None = None) -> Run:
    """Run a command of `python -m monai.bundle`, and kill it at a moment.

    Args:
        command: that follows `python -m monai.bundle`.
        work: events below this folder count.
        log: that the output is appended to.
        moment: when to kill.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.close(reading)
        _be_the_run(command, work, log, writing, moment)
    os.close(writing)
    start, events, text = time.monotonic(), [], ""
    while read := os.read(reading, 65536):
        text += read.decode(errors="replace")
        *lines, text = text.split("\n")
        for line in lines:
            events.append((time.monotonic() - start, line))
            if moment is not None and len(events) == moment.event + 1 and moment.delay:
                time.sleep(moment.delay)
                os.kill(process, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(process, 0)
    return Run(None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status), events)


def _be_the_run(command: Sequence[str], work: Path, log: Path, writing: int, moment: Moment | None) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.chdir(work)
        _watch(work, writing, moment)
        sys.argv = ["monai.bundle", *command]
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.last_value = error
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def _watch(work: Path, writing: int, moment: Moment | None) -> None:
    """Tell each event to the watching process; end at once at the one that is waited for."""
    count, lock, prefix = 0, threading.Lock(), f"{work}/"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        place = arguments[event == "os.rename"]  # of which the new name
        path = os.fsdecode(place) if isinstance(place, (str, bytes, os.PathLike)) else ""
        if not path.startswith(prefix) or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        with lock:
            if moment is not None and count == moment.event and not moment.delay:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            os.write(writing, f"{event} {path.removeprefix(prefix)}\n".encode())

    sys.addaudithook(hook)


# --- what is run ----------------------------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    """Ten normal volumes to train on, two normal and two abnormal ones to test on, four of another site."""
    rows = []
    for index in range(18):
        section, is_abnormal = ("train" if index < 10 else "test", index in (12, 13))
        grid = np.indices((36, 34, 8), np.float32)
        noise = np.random.default_rng(index).normal(0, 20, grid.shape[1:])
        values = 400 + 100 * np.sin(grid[0] / 4 + index / 9) * np.cos(grid[1] / 5) + noise
        lesion = ((grid - np.reshape([15, 15, 4], (3, 1, 1, 1))) ** 2).sum(0) < 30
        values += 300 * lesion * is_abnormal
        place = folder / ("data" if index < 14 else "normals")
        place.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([2.0, 2, 4, 1])), place / f"v{index:02d}.nii.gz")
        if is_abnormal:
            nib.save(nib.Nifti1Image(lesion.astype(np.uint8), np.diag([2.0, 2, 4, 1])), place / f"m{index}.nii.gz")
        if index < 14:
            rows.append([f"v{index:02d}.nii.gz", section, int(is_abnormal), f"m{index}.nii.gz" if is_abnormal else ""])
    write_rows(folder / "data/manifest.csv", ["path", "split", "abnormal", "mask"], rows)


def command_of(verb: str, base: Path, checkpoint: Path | None = None) -> list[str]:
    """What a user gives; with a checkpoint, what the README says of an interrupted training."""
    work = base / "work"
    options: dict[str, Any] = {"dataset_dir": base / ("normals" if verb == "calibrate" else "data")}
    if checkpoint is not None:
        options |= {"resume": checkpoint, "cache_dir": work / "cache"}
        return bundle_command([work / "RUN/configs/train.yaml"], options, "train")[3:]
    options["output_dir"] = work / WRITTEN[verb]
    if verb == "train":
        options |= {**TINY, "cache_dir": work / "cache"}
        return bundle_command([ROOT / "bundle/configs/train.yaml"], options, "train")[3:]
    return bundle_command([work / f"RUN/configs/{verb}.yaml"], options)[3:]


def begin(verb: str, base: Path) -> None:
    """The work folder as it is before a run: empty, or with the bundle."""
    work = base / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    if verb != "train":
        shutil.copytree(base / "reference/train/RUN", work / "RUN")


class Undisturbed(NamedTuple):
    """A run that nobody killed: what it left, and its events."""

    left: dict[str, str]
    events: list[tuple[float, str]]


def undisturbed(verb: str, base: Path) -> Undisturbed:
    """The reference, made now."""
    begin(verb, base)
    done = run(command_of(verb, base), base / "work", base / f"undisturbed_{verb}.log")
    if done.code != 0:
        raise RuntimeError(f"The undisturbed run failed: see undisturbed_{verb}.log in {base}.")
    kept = base / "reference" / verb
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(base / "work", kept)
    return Undisturbed(digests_below(kept), done.events)


def events_of(phase: str, events: Sequence[tuple[float, str]]) -> list[int]:
    """Numbers of the events that belong to a phase."""
    if phase not in PHASES[:3]:
        return [*range(len(events))]
    of_cache = [n for n, (_, words) in enumerate(events) if " cache/" in words and ".lock" not in words]
    logged = [n for n, (_, words) in enumerate(events) if "tfevents" in words]
    bounds = {
        "cache": range(of_cache[-1] + 1),
        "training": range(of_cache[-1] + 1, logged[-1] + 1),
        "calibration at its end": range(logged[-1], len(events)),
    }
    return [*bounds[phase]]


# --- one kill -------------------------------------------------------------------------------------------------------


def verb_of(phase: str) -> str:
    """The verb in which a phase comes."""
    return {"evaluation": "evaluate", "inference": "inference", "calibration of a bundle": "calibrate"}.get(
        phase, "train"
    )


def killed(number: int, seed: int, base: Path, references: References) -> dict[str, Any]:
    """Kill one run, look at what it left, run again, and compare.

    Args:
        number: of the kill, which with the seed decides its phase and moment.
        seed: of all kills.
        base: folder of data and references; its folder work is used.
        references: of the undisturbed runs, by verb.
    """
    random = np.random.default_rng([seed, number])
    phase = PHASES[number % len(PHASES)]
    verb, work, log = verb_of(phase), base / "work", base / f"kill{number:03d}.log"
    reference = references[verb]
    moment = moment_in(events_of(phase, reference.events), reference.events, random)
    log.unlink(missing_ok=True)
    begin(verb, base)
    before = digests_below(work)
    code = run(command_of(verb, base), work, log, moment).code
    row = {"kill": number, "phase": phase, "moment": reference.events[moment.event][1], "delay": f"{moment.delay:.4f}"}
    found = digests_below(work)
    faults = [f"file not whole: {name}" for name in not_whole(found, before, reference.left)]
    by, again = recovery(verb, base)
    if code is None and again is not None and run(again, work, log).code != 0:
        faults.append(f"not recovered: {log} ends with the error")
    else:
        left = digests_below(work)
        if again is None:  # the next run would take away what is hidden
            left = {name: content for name, content in left.items() if "/." not in f"/{name}"}
        faults += differences(left, reference.left)
        faults += [f"other results: {name}" for name in ("RUN", "SITE") if not model_is_its_own(work / name)]
    outcome = faults[0].partition(":")[0] if faults else "recovered"
    if not faults:
        log.unlink()
    return {**row, "by": by if code is None else "was not killed", "outcome": outcome, "detail": "; ".join(faults)}


def moment_in(numbers: Sequence[int], events: Sequence[tuple[float, str]], random: np.random.Generator) -> Moment:
    """A moment among some events: at one of them, any file as likely as any other, or at any time."""
    if random.random() < 0.5:
        words = {number: re.sub(r"[\d.]{4,}", "", events[number][1]) for number in numbers}
        chosen = random.choice(sorted(set(words.values())))
        return Moment(int(random.choice([number for number in numbers if words[number] == chosen])), 0.0)
    end = events[numbers[-1] + 1][0] if numbers[-1] + 1 < len(events) else events[numbers[-1]][0] + 0.05
    time_of_it = random.uniform(events[numbers[0]][0], end)
    event = max(number for number in numbers if events[number][0] <= time_of_it)
    return Moment(event, max(1e-4, float(time_of_it - events[event][0])))


def not_whole(found: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Files under a final name that are neither as before the run nor as after it."""
    visible = {
        name: content
        for name, content in found.items()
        if "/." not in f"/{name}" and ".unfinished" not in name and content != "a folder"
    }
    return [name for name, content in visible.items() if content not in (before.get(name), after.get(name))]


def recovery(verb: str, base: Path) -> tuple[str, list[str] | None]:
    """What a user does after the kill: nothing, if the run was over; go on from the newest checkpoint; run again."""
    written = base / "work" / WRITTEN[verb]
    if (written / "models/model.pt").exists() or read_json(written / "run.json").get("state") == "finished":
        return "nothing to do", None
    saved = sorted(written.glob("logs/checkpoints/checkpoint_epoch=*.pt"))
    if verb == "train" and saved:
        return "resume", command_of(verb, base, saved[-1])
    return "same command", command_of(verb, base)


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """What is other than after the undisturbed run."""
    other = [name for name, content in expected.items() if found.get(name) != content]
    more = [name for name in found if name not in expected]
    return [f"other results: {name}" for name in other] + [f"leftovers: {name}" for name in more]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Phases against outcomes, in Markdown."""
    lines = [f"| phase | kills | {' | '.join(OUTCOMES)} |", "|---" * (2 + len(OUTCOMES)) + "|"]
    for phase in (*PHASES, "all"):
        counts = Counter(row["outcome"] for row in rows if phase in (row["phase"], "all"))
        lines.append(f"| {phase} | {counts.total()} | {' | '.join(str(counts[o] or '') for o in OUTCOMES)} |")
    return "\n".join(lines)


class References(dict[str, Undisturbed]):
    """Undisturbed runs by their verb, made when they are asked for."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.base = base
        shutil.rmtree(base / "reference", ignore_errors=True)
        if not (base / "data").exists():
            write_data(base)

    def __missing__(self, verb: str) -> Undisturbed:
        if verb != "train":
            _ = self["train"]  # whose bundle it uses
        self[verb] = undisturbed(verb, self.base)
        return self[verb]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=lambda path: Path(path).absolute(), required=True)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ["AEFLOW_HOME"] = str(options.output / "home")
    for config in (ROOT / "bundle/configs").glob("*.yaml"):
        read_config(config)  # which each run parses else
    references = References(options.output)
    if options.only is not None:
        return print(*killed(options.only, options.seed, options.output, references).items(), sep="\n")
    path = options.output / "kills.csv"
    if not path.exists():
        write_rows(path, COLUMNS, [])
    with path.open(newline="") as stream:
        rows: list[dict[str, Any]] = list(csv.DictReader(stream))
    done = {int(row["kill"]) for row in rows}
    with path.open("a", newline="", buffering=1) as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        for number in (number for number in range(options.n) if number not in done):
            row = killed(number, options.seed, options.output, references)
            writer.writerow(row)
            rows.append(row)
            print(*row.values(), sep=" | ", flush=True)
    (options.output / "table.md").write_text(table(rows) + "\n")
    print(table(rows))
    raise SystemExit(any(row["outcome"] != "recovered" for row in rows))


if __name__ == "__main__":
    main()

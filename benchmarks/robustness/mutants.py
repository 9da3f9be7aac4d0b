"""Damages files of every format that the package reads, and looks at what it says of each.

    python benchmarks/robustness/mutants.py --output FOLDER --n 2000 --seed 0
    python benchmarks/robustness/mutants.py --output FOLDER --only 123     that mutant again, here, with its traceback

Each mutant is a small file of one format, changed by a seeded mutation: flipped bits, a cut, inserted, removed, zeroed
or swapped bytes, another format's magic number, fields of headers set to extremes, and for text other numbers, words,
signs, lines, nesting and tags. A worker process reads it by the way that the package itself takes; this process watches
time and memory, and starts another worker if one ends. Writes mutants.csv, one line for each mutant, and table.md. An
interrupted run goes on where it stopped.

What counts as right:
- the file reads as before it was changed;
- it reads as another content, if nothing shows the damage: the format has no checksum, no other reader finds the file
  damaged, and it was not cut (a table may have been: any line of it can be the last);
- the error is a ValueError or an OSError, and names the file, or of a preset, which was read well, the option.

All else is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import faulthandler
import io
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parent.parent))

SECONDS, BYTES = 20.0, 4 * 2**30
RIGHT = ("as before", "another content", "named error")
FAULTS = ("quiet", "file not named", "other exception", "hang", "memory", "crash")
COLUMNS = ("mutant", "format", "mutation", "outcome", "seconds", "MiB", "detail")


# --- the worker -----------------------------------------------------------------------------------------------------


class Bench:
    """The undamaged folders, and what the package reads of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        from specimens import prepare, specimens  # here, since the process that watches needs none of it

        self.specimens = specimens()
        self.folder, self.seed = folder, seed
        self.originals, self.scratch = folder / "originals", folder / "scratch"
        if not self.originals.exists():
            unfinished = folder / f"unfinished{os.getpid()}"
            prepare(unfinished)
            unfinished.replace(self.originals)
        self.before: dict[str, str] = {}

    def of(self, number: int) -> tuple[str, Any, bytes]:
        """Format, mutation and changed bytes of one mutant."""
        names = list(self.specimens)
        name = names[number % len(names)]
        specimen = self.specimens[name]
        random = np.random.default_rng([self.seed, number])
        mutation = specimen.mutations[random.integers(len(specimen.mutations))]
        return name, mutation, mutation((self.originals / name / specimen.file).read_bytes(), random)

    def copied(self, name: str, data: bytes | None = None) -> Path:
        """A fresh folder of one format, with these bytes in place of the file's own."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        place = self.scratch / "case"
        shutil.copytree(self.originals / name, place)
        if data is not None:
            (place / self.specimens[name].file).write_bytes(data)
        return place

    def undamaged(self, name: str) -> str:
        """What is read of the file before it is changed."""
        if name not in self.before:
            self.before[name] = json.dumps(self.specimens[name].read(self.copied(name)), default=str)
        return self.before[name]

    def outcome(self, number: int) -> tuple[str, str]:
        """What comes of one mutant, and what was said."""
        from hostile import fault_in

        name, mutation, data = self.of(number)
        before, folder = self.undamaged(name), self.copied(name, data)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                after = json.dumps(self.specimens[name].read(folder), default=str)
        except Exception as error:
            return self.judged(error, folder / self.specimens[name].file, said.getvalue(), self.specimens[name])
        if fault := fault_in(None):
            return "quiet", fault
        if after == before:
            return "as before", ""
        specimen = self.specimens[name]
        if specimen.is_checked or (specimen.shows_cut and mutation.__name__.startswith("cut")):
            return "quiet", f"{mutation.__name__} gives another content"
        try:
            if specimen.opinion is not None:
                specimen.opinion(folder / specimen.file)
        except Exception as error:
            return "quiet", f"another reader finds it damaged: {error!r}"
        return "another content", ""

    def judged(self, error: Exception, file: Path, said: str, specimen: Any) -> tuple[str, str]:
        """What an error is worth, and its words."""
        from hostile import fault_in

        from aeflow_monai.errors import root_cause

        if fault := fault_in(error):
            return "other exception", fault
        cause = root_cause(error)
        detail = f"{type(cause).__name__}: {cause}"
        names = {str(file), file.name, *([str(file.parent)] if file.suffix == ".dcm" else [])}
        if type(cause).__name__ == "LeftOutError":
            return ("named error" if file.name in said else "quiet"), detail
        if not isinstance(cause, (ValueError, OSError)):
            return "other exception", detail
        if specimen.names_option:
            names |= {key.decode() for key in re.findall(rb"\w{4,40}(?=[:#])", file.read_bytes())}
        return ("named error" if any(name in str(cause) for name in names) else "file not named"), detail


def work(folder: Path, seed: int) -> None:
    """Read numbers of mutants from the standard input, and answer each with a line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    log = (folder / "worker.log").open("a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    bench = Bench(folder, seed)
    print("ready", file=answers)
    for line in sys.stdin:
        number = int(line)
        name, mutation, _ = bench.of(number)
        try:
            bench.undamaged(name)
        except Exception as error:
            print(json.dumps({"outcome": "broken", "detail": f"{name}: {error}"}), file=answers)
            raise
        print(json.dumps({"format": name, "mutation": mutation.__name__}), file=answers)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        start, held = time.monotonic(), peak(what="VmRSS")
        outcome, detail = bench.outcome(number)
        taken, megabytes = time.monotonic() - start, peak()
        if outcome in RIGHT and megabytes * 2**20 > BYTES:
            outcome = "memory"
        megabytes -= held
        detail = " ".join(detail.split())[:300].encode(errors="backslashreplace").decode()
        answer = {"outcome": outcome, "seconds": round(taken, 2), "MiB": round(megabytes), "detail": detail}
        print(json.dumps(answer), file=answers)


def peak(process: int | str = "self", what: str = "VmHWM") -> float:
    """Memory of a process in MiB; 0 if it ended."""
    try:
        return int(Path(f"/proc/{process}/status").read_text().split(f"{what}:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


# --- the process that watches ---------------------------------------------------------------------------------------


class Worker:
    """A worker process, started when it is needed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.command = [sys.executable, __file__, "--worker", "--output", str(folder), "--seed", str(seed)]
        self.process: Any = None
        self.read = b""

    def start(self) -> None:
        """Start a process, and wait until it is ready."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "AEFLOW_HOME": str(Path(self.command[4], "home"))}
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        if self.line(600.0) != "ready":
            raise RuntimeError(f"The worker did not start: see worker.log in {self.command[4]}.")

    def line(self, seconds: float) -> str:
        """The next line of the worker, or what came in its place: hang, memory, crash."""
        start = time.monotonic()
        while b"\n" not in self.read:
            if select.select([self.process.stdout], [], [], 0.02)[0]:
                if not (read := os.read(self.process.stdout.fileno(), 65536)):
                    return self.ended("crash")
                self.read += read
            elif peak(self.process.pid, "VmRSS") * 2**20 > BYTES:
                return self.ended("memory")
            elif time.monotonic() - start > seconds:
                return self.ended("hang")
        line, _, self.read = self.read.partition(b"\n")
        return line.decode()

    def ended(self, why: str) -> str:
        """End the process; gives the answer that stands for its own."""
        self.process.kill()
        code = self.process.wait()
        self.process, self.read = None, b""
        return json.dumps({"outcome": why, "seconds": SECONDS, "MiB": 0, "detail": f"exit code {code}"})

    def judge(self, number: int) -> dict[str, Any]:
        """The line of one mutant."""
        if self.process is None:
            self.start()
        self.process.stdin.write(f"{number}\n".encode())
        about = json.loads(self.line(120.0))
        if about.get("outcome") == "broken":
            raise RuntimeError(f"What is not damaged cannot be read: {about['detail']}; see worker.log.")
        answer = about if "outcome" in about else json.loads(self.line(SECONDS))
        return {"mutant": number, "format": "?", "mutation": "?", **about, **answer}

    def stop(self) -> None:
        """Let the process end."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(timeout=60)


def judged(folder: Path, seed: int, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Lines of the mutants of these numbers.

    Args:
        folder: for the undamaged files, and the one that is damaged.
        seed: of the mutants.
        numbers: of the mutants.
    """
    worker = Worker(folder, seed)
    try:
        for number in numbers:
            yield worker.judge(number)
    finally:
        worker.stop()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats against outcomes, in Markdown."""
    formats = sorted({row["format"] for row in rows})
    lines = [f"| format | mutants | {' | '.join((*RIGHT, *FAULTS))} |", "|---" * (2 + len(RIGHT + FAULTS)) + "|"]
    for name in [*formats, "all"]:
        counts = Counter(row["outcome"] for row in rows if name in (row["format"], "all"))
        cells = [str(counts[outcome] or "") for outcome in (*RIGHT, *FAULTS)]
        lines.append(f"| {name} | {counts.total()} | {' | '.join(cells)} |")
    slowest, largest = max(float(row["seconds"]) for row in rows), max(float(row["MiB"]) for row in rows)
    return "\n".join(
        [*lines, "", f"The slowest took {slowest:.1f} s, the largest {largest:.0f} MiB more than the process had."]
    )


def again(folder: Path, seed: int, number: int) -> None:
    """One mutant in this process, with all that it says."""
    bench = Bench(folder, seed)
    name, mutation, data = bench.of(number)
    bench.undamaged(name)
    print(f"mutant {number}: {name}, {mutation.__name__}, left in {bench.copied(name, data)}")
    try:
        bench.specimens[name].read(bench.copied(name, data))
    except Exception:
        traceback.print_exc()
    print(*bench.outcome(number), sep=": ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=lambda path: Path(path).absolute(), required=True)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.worker:
        return work(options.output, options.seed)
    if options.only is not None:
        return again(options.output, options.seed, options.only)
    path = options.output / "mutants.csv"
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
    with path.open(newline="") as stream:
        rows: list[dict[str, Any]] = list(csv.DictReader(stream))
    done = {int(row["mutant"]) for row in rows}
    with path.open("a", newline="", buffering=1) as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        for row in judged(options.output, options.seed, [n for n in range(options.n) if n not in done]):
            writer.writerow(row)
            rows.append(row)
            if row["outcome"] in FAULTS:
                print(*row.values(), sep=" | ", flush=True)
    (options.output / "table.md").write_text(table(rows) + "\n")
    print(table(rows))
    raise SystemExit(any(row["outcome"] in FAULTS for row in rows))


if __name__ == "__main__":
    main()

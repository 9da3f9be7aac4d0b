"""Score small studies with a ledger, while the process is killed again and again.

    python benchmarks/scale_ledger.py --work FOLDER [--studies 10000] [--kills 20] [--seed 0]

Scores a list with `aeflow predict --shard 1/1`, and sends SIGKILL to that process at random: up to two seconds after a
random number of studies is done; every sixth time within ten seconds of its start, during imports, the reading of the
list, or the first studies. The same command is repeated each time. At the end each study must be done exactly once: it
has one row in the ledger and in scores.csv, its file exists and is complete, no study that was done before a kill was
changed, and the first hundred scores equal those of an undisturbed process. It also prints the cost of a kill.
"""

from __future__ import annotations

import collections
import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import nibabel as nib
from shared import arguments, commit, machine, read_rows
from small_studies import environment, prediction, train, write_list, write_studies

from aeflow_monai.archive import Ledger

LEDGER = "shards/1-of-1/ledger.sqlite"


def done_of(out: Path) -> set[str]:
    """Return the files of the studies that are done in the ledger."""
    path = out / LEDGER
    if not path.is_file():
        return set()
    with Ledger(path, read_only=True) as ledger:
        names = [f"{row['results']}/{row['case']}" for _, row in ledger.rows("done")] if ledger.is_begun else []
    return {f"shards/1-of-1/{name}_anomaly_mask.nii.gz" for name in names}


def count_done(out: Path) -> int:
    """Return the number of studies that are done in the ledger."""
    path = out / LEDGER
    if not path.is_file():
        return 0
    with Ledger(path, read_only=True) as ledger:
        return ledger.counts().done if ledger.is_begun else 0


def kill_once(command: list[str], out: Path, at: int | None, rng: random.Random) -> float:
    """Start the command and kill it, and return the seconds that it ran."""
    start = time.perf_counter()
    log = (out.parent / "killed.log").open("a")
    with log, subprocess.Popen(command, stdout=log, stderr=log, env=environment()) as process:
        if at is None:
            time.sleep(rng.uniform(0, 10))
        else:
            while count_done(out) < at and process.poll() is None:
                time.sleep(0.25)
            time.sleep(rng.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        code = process.wait()
    if code != -signal.SIGKILL:
        raise RuntimeError(f"{' '.join(command)} ended with {code} before it was killed.")
    return time.perf_counter() - start


def main() -> None:
    parser = arguments(__doc__ or "", "work")
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    work, n, rng = given.work, given.studies, random.Random(given.seed)
    write_studies(work / "studies", n, seed=0)
    model, listed = train(work), write_list(work / "list.txt", n)
    out = work / "killed"
    command = prediction(listed, model, out, ["--shard", "1/1", "--quiet"])
    thresholds = sorted(rng.sample(range(n * 95 // 100), given.kills))
    touched: dict[str, int] = {}
    again: list[str] = []
    repeated = 0
    start = time.perf_counter()
    for number, at in enumerate(thresholds, 1):
        kill_once(command, out, None if number % 6 == 0 else at, rng)
        done = done_of(out)
        times = {name: (out / name).stat().st_mtime_ns for name in done}
        again += [name for name, changed in touched.items() if times.get(name) != changed]
        touched = times
        written = sum(1 for _ in (out / "shards/1-of-1").glob("*/*_anomaly_mask.nii.gz"))
        repeated += written - len(done)
        print(f"kill {number}: {len(done)} done, {written - len(done)} more written but not noted", flush=True)
    subprocess.run(command, check=True, env=environment())
    seconds = time.perf_counter() - start
    times = {name: (out / name).stat().st_mtime_ns for name in done_of(out)}
    again += [name for name, changed in touched.items() if times.get(name) != changed]
    few = min(100, n)
    undisturbed = prediction(
        write_list(work / "few.txt", few), model, work / "undisturbed", ["--resume", "--overwrite"]
    )
    subprocess.run([*undisturbed, "--quiet"], check=True, env=environment(), stdout=subprocess.DEVNULL)
    report: dict[str, Any] = {
        **verified(out, n, read_rows(work / "undisturbed/scores.csv")),
        "kills": given.kills,
        "done studies that were touched again": len(again),
        "written but not noted when killed, so scored again": repeated,
        "seconds": round(seconds, 1),
        "machine": machine(),
        "commit": commit(),
    }
    print(json.dumps(report, indent=2))


def verified(out: Path, n: int, undisturbed: list[dict[str, str]]) -> dict[str, int]:
    """Return the counts of rows and files; raise an error if a study is not done exactly once."""
    rows = read_rows(out / "scores.csv")
    files = collections.Counter(row["file"] for row in rows)
    by_file = {row["file"]: row for row in rows}
    masks = [out / row["results"] / f"{row['case']}_anomaly_mask.nii.gz" for row in rows]
    whole = sum(nib.load(mask).get_fdata().shape[:2] == (64, 64) for mask in masks)
    left = list(out.rglob(".unfinished-*"))
    same = sum(by_file[row["file"]]["anomaly_score"] == row["anomaly_score"] for row in undisturbed)
    report = {
        "studies": n,
        "rows in scores.csv": len(rows),
        "different files in it": len(files),
        "whole masks": whole,
        "unfinished files that are left": len(left),
        f"scores equal to an undisturbed run, of {len(undisturbed)}": same,
    }
    if not len(rows) == len(files) == whole == len(set(masks)) == n or left or same != len(undisturbed):
        raise RuntimeError(f"Not each study is done exactly once: {report}")
    return report


if __name__ == "__main__":
    main()

"""Studies per second of two shards on two cores, against one shard on one core.

    python benchmarks/scale_workers.py --work FOLDER [--studies 600] [--rounds 3] [--ray]

Scores the same list with one process, and with two that have a shard each, in turn. The rate is measured between the
first and the last study, without imports, by the modification times of the masks. With --ray also by `--ray local` with
one worker and with two. Each process has one thread, and is pinned to its own core if the system supports it; Ray with
all its processes to as many cores as it has workers. Run it on an idle machine: other work on the second core lowers
the ratio.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from shared import arguments, commit, in_turn, machine, median_ratio, own_measure
from small_studies import environment, prediction, train, write_list, write_studies


def bound_to(cores: set[int]) -> Callable[[], None] | None:
    """Return a function that pins a process to cores before it starts."""
    return partial(os.sched_setaffinity, 0, cores) if hasattr(os, "sched_setaffinity") else None


def rate(commands: list[list[str]], cores: list[set[int]], out: Path) -> float:
    """Return studies per second of all processes together, each on its cores, while all are scoring."""
    shutil.rmtree(out, ignore_errors=True)
    processes = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, preexec_fn=bound_to(its))
        for its, command in zip(cores, commands, strict=True)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"{' '.join(commands[0])} and others ended with {codes}.")
    times: dict[Path, list[float]] = {}
    for mask in out.glob("shards/*/*/*_anomaly_mask.nii.gz"):
        times.setdefault(mask.parent.parent, []).append(mask.stat().st_mtime)
    # only while no shard has ended
    begin, end = max(map(min, times.values())), min(map(max, times.values()))
    return sum(begin <= each <= end for some in times.values() for each in some) / (end - begin)


def main() -> None:
    parser = arguments(__doc__ or "", "work")
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    work = given.work
    write_studies(work / "studies", given.studies, seed=0)
    model, listed, out = train(work), write_list(work / "list.txt", given.studies), work / "out"

    def shards(n: int) -> float:
        commands = [prediction(listed, model, out, ["--shard", f"{k}/{n}", "--quiet"]) for k in range(1, n + 1)]
        return rate(commands, [{core} for core in range(n)], out)

    def on_ray(n: int) -> float:
        more = ["--ray", "local", "--workers", str(n), "--quiet"]
        return rate([prediction(listed, model, out, more)], [set(range(n))], out)

    ways = {"one shard": partial(shards, 1), "two shards": partial(shards, 2)}
    if given.ray:
        ways |= {"one Ray worker": partial(on_ray, 1), "two Ray workers": partial(on_ray, 2)}
    load = os.getloadavg()[0]
    start = time.perf_counter()
    rates = in_turn(ways, given.rounds, warm_up=False, measure=own_measure)
    report = {
        "studies in a second": {name: round(statistics.median(each), 2) for name, each in rates.items()},
        "two shards by one": round(median_ratio(rates["two shards"], rates["one shard"]), 2),
    }
    if given.ray:
        report["two Ray workers by one"] = round(median_ratio(rates["two Ray workers"], rates["one Ray worker"]), 2)
    report |= {"load before": round(load, 1), "seconds": round(time.perf_counter() - start), "machine": machine()}
    print(json.dumps({**report, "commit": commit()}, indent=2))


if __name__ == "__main__":
    main()

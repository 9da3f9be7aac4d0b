"""One volume by `aeflow predict`, from Enter to exit, by this code and by that of another checkout, in turn.

    git worktree add /tmp/before ead7b3b
    python benchmarks/volume_command.py --other /tmp/before [--run RUN] [--image FILE] [--repeats 3]

The volume is made up (240 x 240 x 155), and the bundle has the defaults and untrained weights, unless they are given.
The phases are told by the times in the run's own log: `imports` until MONAI reads the config, `checks` until the
evaluator begins, `volume` until report and scores are written, `exit` until the process has ended. Processor time is
that of all cores together; on a busy machine its ratio says more than that of the seconds. A first run of each does not
count, after which what this code keeps for later runs is there. Says also whether the scores are the same.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from shared import ROOT, arguments, commit, machine, write_untrained, write_volume

_COMMAND = "import sys; from aeflow_monai.cli.main import main; sys.exit(main())"
_MARKS = {"imports": "", "checks": "Engine run resuming", "volume": "Engine run finished"}


def phases_of(checkout: Path, image: Path, run: Path, output: Path, home: Path) -> dict[str, float]:
    """Seconds of the phases of one run, of all of it, and of processor time."""
    command = [sys.executable, "-c", _COMMAND, "predict", str(image), "-m", str(run), "-o", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "AEFLOW_HOME": str(home)}
    before, start = os.times(), time.time()
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=home)
    ended, after = time.time(), os.times()
    log = (output / "logs/inference.log").read_text(encoding="utf-8").splitlines()
    found, last = {}, start
    for phase, mark in _MARKS.items():
        line = next(line for line in log if mark in line and line[:2] == "20")
        until = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        found[phase], last = until - last, until
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {**found, "exit": ended - last, "all of it": ended - start, "processor time": used}


def main() -> None:
    parser = arguments(__doc__, "other")
    parser.add_argument("--run", type=lambda path: Path(path).absolute(), help="a bundle of your own")
    parser.add_argument("--image", type=lambda path: Path(path).absolute(), help="a volume of your own")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    checkouts = {"before": given.other, "now": ROOT}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, run = given.image or folder / "volume.nii.gz", given.run or write_untrained(folder / "run")
        if not given.image:
            write_volume(image)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in checkouts}
        scores = set()
        for number in range(given.repeats + 1):
            for way, checkout in checkouts.items():
                output = folder / f"{way}_{number}"
                found[way].append(phases_of(checkout, image, run, output, folder))
                scores.add((output / "scores.csv").read_text(encoding="utf-8"))
    print("| s | before | now | ratio |\n|---|---|---|---|")
    for phase in found["now"][0]:
        before, now = ([each[phase] for each in found[way][1:]] for way in checkouts)
        ratio = statistics.median(b / a for a, b in zip(before, now, strict=True))
        print(f"| {phase} | {statistics.median(before):.1f} | {statistics.median(now):.1f} | {ratio:.2f} |")
    same = "the same" if len(scores) == 1 else "different"
    print(f"\nMedians of {given.repeats}, {same} scores, commit {commit()}, {machine()}.")


if __name__ == "__main__":
    main()

"""Time of `aeflow predict` on one volume, by this code and by another checkout, in turn.

    git worktree add /tmp/before ead7b3b
    python benchmarks/volume_command.py --other /tmp/before [--run RUN] [--image FILE] [--repeats 3]

The volume is synthetic (240 x 240 x 155). The bundle has untrained weights and the defaults of the other checkout,
since this code can read models of earlier versions. Both can be given.
The phases are measured by the times in the run's log: `imports` until MONAI reads the config, `checks` until the
evaluator begins, `volume` until report and scores are written, `exit` until the process has ended. Processor time is
the sum over all cores; on a busy machine its ratio is more reliable than that of the seconds. A first run of each,
which fills the caches of this code, is not counted. It also prints whether the scores are the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import ROOT, arguments, commit, machine, phases_of, print_phases, write_volume

MARKS = {"imports": "", "checks": "Engine run resuming", "volume": "Engine run finished"}


def untrained(checkout: Path, run: Path) -> Path:
    """Write an untrained bundle with the code of a checkout."""
    command = (
        "import sys; from pathlib import Path; from shared import write_untrained; write_untrained(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "benchmarks")])}
    subprocess.run([sys.executable, "-c", command, str(run)], check=True, env=environment, cwd=run.parent)
    return run


def main() -> None:
    parser = arguments(__doc__, "other")
    parser.add_argument("--run", type=lambda path: Path(path).absolute(), help="a bundle of your own")
    parser.add_argument("--image", type=lambda path: Path(path).absolute(), help="a volume of your own")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    checkouts = {"before": given.other, "now": ROOT}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, run = given.image or folder / "volume.nii.gz", given.run or untrained(given.other, folder / "run")
        if not given.image:
            write_volume(image)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in checkouts}
        scores = set()
        for number in range(given.repeats + 1):
            for way, checkout in checkouts.items():
                output = folder / f"{way}_{number}"
                words = ["predict", image, "-m", run, "-o", output]
                found[way].append(phases_of(checkout, words, output / "logs/inference.log", MARKS, folder))
                scores.add((output / "scores.csv").read_text(encoding="utf-8"))
    print_phases(found)
    same = "the same" if len(scores) == 1 else "different"
    print(f"\nMedians of {given.repeats}, {same} scores, commit {commit()}, {machine()}.")


if __name__ == "__main__":
    main()

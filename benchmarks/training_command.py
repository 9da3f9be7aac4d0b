"""Time of the README's training, `aeflow train` on the embedded volumes, by this code and another checkout, in turn.

    git worktree add /tmp/before 6ea55fc
    python benchmarks/training_command.py --other /tmp/before [--repeats 1]

The phases are measured by the times in the run's log: `imports` until the run has begun, `features` until all slices
are encoded, `training` until the last epoch has ended, `calibration` until the model is written. A first run of each,
which fills the system's caches, is not counted. It also prints the AUROC of cases of both models on the test volumes,
by this code's `aeflow evaluate`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from shared import ROOT, arguments, commit, machine, phases_of, print_phases

from aeflow_monai import write_phantom
from aeflow_monai.files import read_json

MARKS = {
    "imports": "cases of the section",
    "features": "SupervisedTrainer: Engine run resuming",
    "training": "SupervisedTrainer: Epoch[",
    "calibration": "Calibrated on held-out normals",
}


def main() -> None:
    parser = arguments(__doc__ or "", "other")
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    checkouts = {"before": given.other, "now": ROOT}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in checkouts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_phantom(folder / "phantom")
        for number in range(given.repeats + 1):
            for way, checkout in checkouts.items():
                run = folder / f"{way}_{number}"
                found[way].append(
                    phases_of(checkout, ["train", data, "-o", run], run / "logs/train.log", MARKS, folder)
                )
        print_phases(found)
        for way in checkouts:
            run, results = folder / f"{way}_{given.repeats}", folder / f"results_{way}"
            words = ["evaluate", data, "-m", run, "-o", results]
            phases_of(ROOT, words, results / "logs/evaluate.log", {}, folder)
            print(f"AUROC of cases, {way}: {read_json(results / 'metrics.json')['auroc']:.3f}")
    print(f"\nMedians of {given.repeats}, commit {commit()}, {machine()}.")


if __name__ == "__main__":
    main()

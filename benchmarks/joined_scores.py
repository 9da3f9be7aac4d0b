"""How the global term joins the maps' score: weight and softness of the soft maximum, on the panel.

    python benchmarks/panel.py --data DATA --sets SETS --output OUT --seeds 0 1 2 --methods aeflow
    python benchmarks/detection/acquisitions.py --panel OUT --seeds 0 --methods aeflow
    python benchmarks/joined_scores.py --panel OUT [--seeds 0 1 2]

Means of AUROC over the panel's sets of images, also without dementia, where the term weighs most; over the images that
acquisitions.py has changed, where it has; and of the cases of each set of volumes. Below: what the others would choose
without each set of images in turn. Of what a run's scores.csv says; labels of development splits alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from panel import IMAGES, VOLUMES
from shared import arguments, commit, read_rows
from sklearn.metrics import roc_auc_score

Array = NDArray[np.float64]

WEIGHTS, SOFTNESS = (1, 2, 3, 4), (1, 2, 4, 8, 100)
CHANGED = ("known", "unknown")


def parts_of(results: Path) -> tuple[Array, Array, Array]:
    """Label, map score and global term of each case."""
    rows = read_rows(results / "scores.csv")
    columns = ("label", "map_score", "global_term")
    label, of_maps, term = (np.array([float(row[name]) for row in rows]) for name in columns)
    return label, of_maps, term


def aurocs(found: Sequence[tuple[Array, Array, Array]]) -> Array:
    """Mean AUROC over seeds, (weights, softness)."""
    return np.array(
        [
            [
                np.mean([roc_auc_score(y, s * np.logaddexp(m / s, weight * t / s)) for y, m, t in found])
                for s in SOFTNESS
            ]
            for weight in WEIGHTS
        ]
    )


def of_panel(panel: Path, names: Sequence[str], seeds: Sequence[str], kind: str = "") -> dict[str, Array]:
    """`aurocs` of the sets that all seeds have."""
    found = {}
    for name in names:
        results = [panel / name / f"seed{seed}/aeflow" / kind / "results" for seed in seeds]
        if all((folder / "scores.csv").exists() for folder in results):
            found[name] = aurocs([parts_of(folder) for folder in results])
    return found


def main() -> None:
    parser = arguments(__doc__, "panel")
    parser.add_argument("--seeds", nargs="+", default=["0"])
    given = parser.parse_args()
    images = of_panel(given.panel, IMAGES, given.seeds)
    if not images:
        raise SystemExit(f"No set of images in {given.panel} has scores of all seeds {given.seeds}.")
    if missing := set(IMAGES) - set(images):
        print(f"Without {', '.join(sorted(missing))}, of which not all seeds have scores.\n")
    columns = {f"{len(images)} sets of images": images}
    columns["without dementia"] = {name: each for name, each in images.items() if name != "dementia_mri"}
    for kind in CHANGED:
        changed = of_panel(given.panel, IMAGES, given.seeds[:1], kind)
        columns[f"{kind}, {len(changed)} sets, seed {given.seeds[0]}"] = changed
    columns |= {name: {name: each} for name, each in of_panel(given.panel, VOLUMES, given.seeds).items()}
    columns = {title: of_sets for title, of_sets in columns.items() if of_sets}
    means = {title: np.mean([*of_sets.values()], axis=0) for title, of_sets in columns.items()}
    print("| " + " | ".join(["weight", "softness", *means]) + " |\n|---|---" + "|---:" * len(means) + "|")
    for i, weight in enumerate(WEIGHTS):
        for j, softness in enumerate(SOFTNESS):
            print(f"| {weight} | {softness} | " + " | ".join(f"{mean[i, j]:.3f}" for mean in means.values()) + " |")
    chosen = []
    for left_out in images:
        mean = np.mean([each for name, each in images.items() if name != left_out], axis=0)
        i, j = np.unravel_index(mean.argmax(), mean.shape)
        chosen.append(f"{WEIGHTS[i]}, {SOFTNESS[j]} (without {left_out})")
    print(f"\nSeeds {', '.join(given.seeds)}; weight and softness chosen: {'; '.join(chosen)}. Commit {commit()}.")


if __name__ == "__main__":
    main()

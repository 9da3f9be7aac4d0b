"""Ways to join global term and map score (weight, softness of the maximum, and bend) on the panel.

    python benchmarks/panel.py --data DATA --sets SETS --output OUT --seeds 0 1 2 --methods aeflow
    python benchmarks/detection/acquisitions.py --panel OUT --sources SOURCES --seeds 0 --methods aeflow
    python benchmarks/joined_scores.py --panel OUT [--seeds 0 1 2]

Mean AUROC over the panel's sets of images; over the images changed by acquisitions.py, and those of another source, if
it has scored them; and over the cases of each set of volumes. Below: the choice without each set of images in turn, by
the sum of these means of images. Reads scores.csv of the runs, and no label of an official test split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from panel import IMAGES, VOLUMES
from shared import arguments, commit, read_rows
from sklearn.metrics import roc_auc_score
from torch import Tensor

from aeflow_monai.score import GlobalTerm

WEIGHTS, SOFTNESS = (2.0, 3.0, 4.0), (1.0, 4.0, 100.0)
BENDS = ((math.inf, 1.0), (1.0, 0.25), (1.5, 0.25))
CHANGED = ("known", "unknown", "another_source")


def ways() -> dict[str, GlobalTerm]:
    """Return the ways to join, by their table cells."""
    found = {}
    for weight, softness, bend in itertools.product(WEIGHTS, SOFTNESS, BENDS):
        term = GlobalTerm()
        term.weight.fill_(weight)
        term.softness.fill_(softness)
        term.bend.copy_(torch.tensor(bend))
        text = "none" if math.isinf(bend[0]) else f"{bend[0]:g}, {bend[1]:g}"
        found[f"{weight:g} | {softness:g} | {text}"] = term
    return found


def parts_of(results: Path) -> tuple[list[int], Tensor, Tensor]:
    """Return label, map score and global term of each case."""
    rows = read_rows(results / "scores.csv")
    of_maps, terms = (torch.tensor([float(row[name]) for row in rows]) for name in ("map_score", "global_term"))
    return [int(row["label"]) for row in rows], of_maps, terms


def of_panel(panel: Path, names: Sequence[str], seeds: Sequence[str], kind: str = "") -> dict[str, NDArray[np.float64]]:
    """Return the AUROC of each way to join, mean over seeds, for the sets that all seeds have."""
    found = {}
    for name in names:
        results = [panel / name / f"seed{seed}/aeflow" / kind / "results" for seed in seeds]
        if all((folder / "scores.csv").exists() for folder in results):
            cases = [parts_of(folder) for folder in results]
            found[name] = np.array(
                [np.mean([roc_auc_score(y, way.joined(m, t)) for y, m, t in cases]) for way in ways().values()]
            )
    return found


def sum_of_means(columns: Mapping[str, Mapping[str, NDArray[np.float64]]], left_out: str = "") -> NDArray[np.float64]:
    """Return the sum of the columns' means, without one set."""
    of_columns = ([each for name, each in of_sets.items() if name != left_out] for of_sets in columns.values())
    total: NDArray[np.float64] = np.sum([np.mean(each, axis=0) for each in of_columns if each], axis=0)
    return total


def main() -> None:
    parser = arguments(__doc__, "panel")
    parser.add_argument("--seeds", nargs="+", default=["0"])
    given = parser.parse_args()
    images = of_panel(given.panel, IMAGES, given.seeds)
    if not images:
        raise SystemExit(f"No set of images in {given.panel} has scores of all seeds {given.seeds}.")
    if missing := set(IMAGES) - set(images):
        print(f"Without {', '.join(sorted(missing))}, of which not all seeds have scores.\n")
    chosen_by = {f"{len(images)} sets of images": images}
    for kind in CHANGED:
        if changed := of_panel(given.panel, IMAGES, given.seeds[:1], kind):
            chosen_by[f"{kind.replace('_', ' ')}, {len(changed)} sets, seed {given.seeds[0]}"] = changed
    columns = chosen_by | {"dementia": {"": images["dementia_mri"]}} if "dementia_mri" in images else dict(chosen_by)
    columns |= {name: {name: each} for name, each in of_panel(given.panel, VOLUMES, given.seeds).items()}
    means = {title: np.mean([*of_sets.values()], axis=0) for title, of_sets in columns.items()}
    print("| " + " | ".join(["weight", "softness", "bend", *means]) + " |\n|---|---|---" + "|---:" * len(means) + "|")
    for number, way in enumerate(ways()):
        print(f"| {way} | " + " | ".join(f"{mean[number]:.3f}" for mean in means.values()) + " |")
    names = [*ways()]
    chosen = [f"{names[sum_of_means(chosen_by, name).argmax()]} (without {name})" for name in images]
    of_all = names[sum_of_means(chosen_by).argmax()]
    print(f"\nSeeds {', '.join(given.seeds)}; chosen: {of_all}; {'; '.join(chosen)}. Commit {commit()}.")


if __name__ == "__main__":
    main()

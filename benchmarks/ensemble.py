"""Ensembles of trainings: the mean of their scores, and their disagreement.

    python benchmarks/panel.py --data DATA --sets SETS --output OUT --seeds 0 1 2 --methods aeflow
    python benchmarks/ensemble.py --panel OUT [--method aeflow] [--seeds 0 1 2]

For each set of the panel: AUROC of images, or of cases for volumes, of single trainings (mean and smallest), of the
mean of their scores, and of the mean plus and minus the deviation between trainings. Then whether the disagreement
predicts errors: AUROC of the half of the images on which trainings agree best, and of the other half. Uses labels of
development splits only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from panel import IMAGES, VOLUMES
from shared import arguments, commit, read_rows
from sklearn.metrics import roc_auc_score

Array = NDArray[np.float64]


def scores_of(folder: Path) -> tuple[list[str], Array, Array]:
    """Return file, label and score of each image, or of each case for volumes."""
    rows = read_rows(folder / "results/scores.csv")
    labels, scores = (np.array([float(row[name]) for row in rows]) for name in ("label", "anomaly_score"))
    return [row["file"] for row in rows], labels, scores


def row_of(folder: Path, method: str, seeds: list[str]) -> list[float]:
    """Return AUROC: mean and smallest of single trainings; ensemble; plus, minus deviation; agreeing half and other."""
    found = [scores_of(folder / f"seed{seed}" / method) for seed in seeds]
    if len({tuple(names) for names, _, _ in found}) > 1:
        raise ValueError(f"{folder}: the seeds have scores of different images.")
    labels, scores = found[0][1], np.stack([each for _, _, each in found])
    alone = [roc_auc_score(labels, each) for each in scores]
    mean, spread = scores.mean(axis=0), scores.std(axis=0)
    agree = spread <= np.median(spread)
    together = [roc_auc_score(labels, each) for each in (mean, mean + spread, mean - spread)]
    halves = [
        roc_auc_score(labels[half], mean[half]) if len(set(labels[half])) > 1 else np.nan for half in (agree, ~agree)
    ]
    return [float(np.mean(alone)), min(alone), *together, *halves]


def main() -> None:
    parser = arguments(__doc__, "panel")
    parser.add_argument("--method", default="aeflow")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    given = parser.parse_args()
    names = ("set", "one", "worst", "mean of all", "plus deviation", "minus", "where they agree", "where not")
    print("| " + " | ".join(names) + " |\n|---" + "|---:" * (len(names) - 1) + "|")
    rows = []
    for name in (*IMAGES, *VOLUMES):
        if all((given.panel / name / f"seed{seed}/{given.method}/score.json").exists() for seed in given.seeds):
            rows.append(row_of(given.panel / name, given.method, given.seeds))
            print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in rows[-1]) + " |")
    if not rows:
        raise SystemExit(f"{given.panel} holds no set with {given.method} of these seeds: run panel.py first.")
    print("| mean | " + " | ".join(f"{value:.3f}" for value in np.nanmean(rows, axis=0)) + " |")
    print(f"\nDevelopment splits, seeds {', '.join(given.seeds)}; commit {commit()}.")


if __name__ == "__main__":
    main()

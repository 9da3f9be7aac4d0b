"""What the global term is made of: distances of pooled features from normals, alone and joined to the map's score.

    python benchmarks/panel.py --data DATA --sets SETS --output OUT --seeds 0 --methods aeflow
    python benchmarks/global_terms.py --data DATA --sets SETS --panel OUT

For each set of images of the panel: features of the default encoder at the bundle's size, pooled; distances as they are
named below, each standardised by normals that are compared with those of other patients; AUROC of each alone, of their
sums, and of the soft maximum with the map scores that the panel's seed 0 has in scores.csv. Labels of development
splits alone. Features are kept in OUT/<set>/pooled.npz.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from panel import IMAGES
from shared import arguments, commit, processor, template
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestNeighbors
from torch.utils.data import DataLoader

from aeflow_monai import Encoder
from aeflow_monai.data import SliceDataset
from aeflow_monai.score import pooled_features

Array = NDArray[np.float64]
HERE = Path(__file__).parent
ALONE = [
    ("mahalanobis",),
    ("nearest",),
    ("nearest five",),
    ("nearest of the whole",),
    ("mahalanobis", "nearest"),
    ("nearest", "nearest of the whole"),
    ("mahalanobis", "nearest", "nearest of the whole"),
]
WEIGHTS = (1, 1.5, 2, 3)


def standardised(normals: Array, slices: Array) -> tuple[Array, Array]:
    """Both in units of the normals."""
    mean, std = normals.mean(axis=0), normals.std(axis=0)
    std[std <= 1e-6 * abs(mean) + 1e-12] = 1.0
    return (normals - mean) / std, (slices - mean) / std


def mahalanobis(normals: Array, slices: Array) -> Array:
    """From the mean, with a shrunk covariance."""
    normals, slices = (each.reshape(len(each), -1) for each in standardised(normals, slices))
    covariance, _ = ledoit_wolf(normals, assume_centered=True)
    return np.sqrt(np.einsum("ij,jk,ik->i", slices, np.linalg.inv(covariance + 1e-6 * np.eye(len(covariance))), slices))


def nearest(normals: Array, slices: Array, number: int = 1) -> Array:
    """Mean distance from the nearest normals."""
    normals, slices = (each.reshape(len(each), -1) for each in standardised(normals, slices))
    return NearestNeighbors(n_neighbors=number).fit(normals).kneighbors(slices)[0].mean(axis=1)


def of_whole(normals: Array, slices: Array) -> Array:
    """From the nearest normal by the means of all of a slice."""
    return nearest(*(each.mean(axis=2) for each in standardised(normals, slices)))


DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "mahalanobis": mahalanobis,
    "nearest": nearest,
    "nearest five": lambda normals, slices: nearest(normals, slices, number=5),
    "nearest of the whole": of_whole,
}


def terms(normals: Array, patients: NDArray[np.str_], slices: Array) -> dict[str, tuple[Array, Array]]:
    """Standardised distances of slices, and of normals from those of other patients, by name."""
    found = {}
    for name, distance in DISTANCES.items():
        of_normals = np.empty(len(normals))
        for others, group in GroupKFold(5).split(normals, groups=patients):
            of_normals[group] = distance(normals[others], normals[group])
        mean, std = of_normals.mean(), of_normals.std()
        found[name] = ((distance(normals, slices) - mean) / std, (of_normals - mean) / std)
    return found


def together(of: dict[str, tuple[Array, Array]], names: Sequence[str]) -> Array:
    """The mean of some terms, standardised again."""
    slices, normals = (sum(of[name][number] for name in names) for number in (0, 1))
    return slices / normals.std()


def pooled(folder: Path) -> tuple[Array, NDArray[np.str_], NDArray[np.str_]]:
    """Pooled features, file and patient of the slices of a folder with manifest.csv."""
    parser = template(HERE / "panel.yaml", dataset_dir=str(folder))
    encoder = Encoder(parser["backbone"], parser["stages"], parser["encoder_weights"], parser["in_channels"])
    rows = list(csv.DictReader((folder / "manifest.csv").open(encoding="utf-8")))
    items = [{"image": row["path"], "case": row["case"], "patient": row["patient"] or row["case"]} for row in rows]
    parts = [parser.get_parsed_content(name) for name in ("preprocessing", "slicer")]
    found: dict[str, list[NDArray[np.generic]]] = {"pooled": [], "file": [], "patient": []}
    for batch in DataLoader(SliceDataset(items, *parts), batch_size=16):
        found["pooled"].append(pooled_features(encoder(torch.as_tensor(batch["image"]))).numpy())
        found["file"].append(np.array(batch["file"]))
        found["patient"].append(np.array(batch["patient"]))
    whole = {name: np.concatenate(each) for name, each in found.items()}
    return whole["pooled"].astype(np.float64), whole["file"], whole["patient"]


def of_set(folder: Path) -> tuple[NDArray[np.int64], Array, dict[str, tuple[Array, Array]]]:
    """Labels, map scores and standardised distances of the test images of a set."""
    kept = folder / "pooled.npz"
    if not kept.exists():
        normals, _, patients = pooled(folder / "normals")
        slices, files, _ = pooled(folder / "test")
        np.savez(kept, normals=normals, patients=patients, slices=slices, files=files)
    stored = np.load(kept)
    scores = (folder / "seed0/aeflow/results/scores.csv").open(encoding="utf-8")
    rows = {row["file"]: row for row in csv.DictReader(scores)}
    chosen = [rows[file] for file in stored["files"]]
    labels, maps = (np.array([float(row[name]) for row in chosen]) for name in ("label", "map_score"))
    return labels.astype(int), maps, terms(stored["normals"], stored["patients"], stored["slices"])


def main() -> None:
    parser = arguments(__doc__, "data", "sets", "panel")
    parser.add_argument("--only", nargs="+", default=IMAGES, help="names of sets; all of images by default")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    sets = {name: of_set(given.panel / name) for name in given.only}

    def row(name: str, score: Callable[[Array, dict[str, tuple[Array, Array]]], Array]) -> None:
        found = [roc_auc_score(labels, score(maps, of)) for labels, maps, of in sets.values()]
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in (*found, np.mean(found))) + " |")

    print(f"Development splits, seed 0; commit {commit()}; {processor()}.\n")
    print("| | " + " | ".join((*sets, "mean")) + " |\n|---|" + "---:|" * (len(sets) + 1))
    row("map", lambda maps, of: maps)
    for names in ALONE:
        row(" + ".join(names), lambda _, of, names=names: together(of, names))
        for weight in WEIGHTS:
            row(
                f"the same with the map, weight {weight}",
                lambda maps, of, names=names, weight=weight: np.logaddexp(maps, weight * together(of, names)),
            )


if __name__ == "__main__":
    main()

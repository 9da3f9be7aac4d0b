"""Candidates for the global term: distances of pooled features from normals, alone and joined with the map score.

    python benchmarks/panel.py --data DATA --sets SETS --output OUT --seeds 0 1 2 --methods aeflow
    python benchmarks/global_terms.py --panel OUT --seeds 0 1 2

For each set of images of the panel: pooled features of the default encoder at the bundle's size; the distances named
below, fitted to the training normals of a seed without their copies, and standardised by these, each compared with
other patients, and by the held-out normals; AUROC of each alone, of their sums, and of the soft maximum with the map
scores of that seed, averaged over seeds. Last, for each set, the choice that the other sets would make. Uses labels of
development splits only.
Features are cached in OUT/<set>/pooled_normals.npz and pooled_test.npz: delete these if images or encoder change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from panel import IMAGES
from shared import arguments, commit, processor, read_rows, template
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestNeighbors
from torch.utils.data import DataLoader

from aeflow_monai import Encoder
from aeflow_monai.data import SliceDataset
from aeflow_monai.files import read_json
from aeflow_monai.score import pooled_features

Array = NDArray[np.float64]
Words = NDArray[np.str_]
Terms = dict[str, tuple[Array, Array]]
Seed = tuple[NDArray[np.int64], Array, Terms]  # labels, map scores and terms of the test images
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
    """Standardise both by the normals."""
    mean, std = normals.mean(axis=0), normals.std(axis=0)
    std[std <= 1e-6 * abs(mean) + 1e-12] = 1.0
    return (normals - mean) / std, (slices - mean) / std


def mahalanobis(normals: Array, slices: Array) -> Array:
    """Return the Mahalanobis distance from the mean, with a shrunk covariance."""
    normals, slices = (each.reshape(len(each), -1) for each in standardised(normals, slices))
    covariance, _ = ledoit_wolf(normals, assume_centered=True)
    return np.sqrt(np.einsum("ij,jk,ik->i", slices, np.linalg.inv(covariance + 1e-6 * np.eye(len(covariance))), slices))


def nearest(normals: Array, slices: Array, number: int = 1) -> Array:
    """Return the mean distance from the nearest normals."""
    normals, slices = (each.reshape(len(each), -1) for each in standardised(normals, slices))
    return NearestNeighbors(n_neighbors=number).fit(normals).kneighbors(slices)[0].mean(axis=1)


def of_whole(normals: Array, slices: Array) -> Array:
    """Return the distance from the nearest normal by the means over a whole slice."""
    return nearest(*(each.mean(axis=2) for each in standardised(normals, slices)))


DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "mahalanobis": mahalanobis,
    "nearest": nearest,
    "nearest five": lambda normals, slices: nearest(normals, slices, number=5),
    "nearest of the whole": of_whole,
}


def terms(normals: Array, patients: Words, is_trained: NDArray[np.bool_], slices: Array) -> Terms:
    """Return standardised distances by name: of slices, and of normals from training normals of other patients."""
    found = {}
    trained, groups = normals[is_trained], patients[is_trained]
    for name, distance in DISTANCES.items():
        of_normals = np.empty(len(normals))
        of_normals[~is_trained] = distance(trained, normals[~is_trained])
        of_trained = np.empty(len(trained))
        for others, group in GroupKFold(5).split(trained, groups=groups):
            of_trained[group] = distance(trained[others], trained[group])
        of_normals[is_trained] = of_trained
        mean, std = of_normals.mean(), of_normals.std()
        found[name] = ((distance(trained, slices) - mean) / std, (of_normals - mean) / std)
    return found


def together(of: Terms, names: Sequence[str]) -> Array:
    """Return the mean of some terms, standardised again."""
    slices, normals = (sum(of[name][number] for name in names) for number in (0, 1))
    return slices / normals.std()


def pooled(folder: Path) -> dict[str, NDArray[Any]]:
    """Return pooled features, path, case and patient of the slices of a folder with manifest.csv."""
    parser = template(HERE / "panel.yaml", dataset_dir=str(folder))
    encoder = Encoder(parser["backbone"], parser["stages"], parser["encoder_weights"], parser["in_channels"])
    rows = read_rows(folder / "manifest.csv")
    items = [{"image": row["path"], "case": row["case"], "patient": row["patient"] or row["case"]} for row in rows]
    parts = [parser.get_parsed_content(name) for name in ("preprocessing", "slicer")]
    found: dict[str, list[NDArray[Any]]] = {"pooled": [], "path": [], "case": [], "patient": []}
    for batch in DataLoader(SliceDataset(items, *parts), batch_size=16):
        found["pooled"].append(pooled_features(encoder(torch.as_tensor(batch["image"]))).double().numpy())
        for name, of_slices in (("path", "file"), ("case", "case"), ("patient", "patient")):
            found[name].append(np.array(batch[of_slices]))
    return {name: np.concatenate(each) for name, each in found.items()}


def kept(folder: Path, kind: str) -> dict[str, NDArray[Any]]:
    """Return the result of `pooled` for the "normals" or the "test" images of a set, cached."""
    file = folder / f"pooled_{kind}.npz"
    if not file.exists():
        np.savez(file, **pooled(folder / kind))
    return dict(np.load(file))


def of_set(folder: Path, seeds: Sequence[str]) -> list[Seed]:
    """Return labels, map scores and terms of the test images of a set, for each seed."""
    normals, test = kept(folder, "normals"), kept(folder, "test")
    found = []
    for seed in seeds:
        run = folder / f"seed{seed}/aeflow"
        rows = {row["file"]: row for row in read_rows(run / "results/scores.csv")}
        chosen = [rows[file] for file in test["path"]]
        labels, maps = (np.array([float(row[name]) for row in chosen]) for name in ("label", "map_score"))
        held_out = [each["case"] for each in read_json(run / "logs/run.json")["held_out"]]
        is_trained = ~np.isin(normals["case"], held_out)
        if is_trained.all():
            raise SystemExit(f"{folder}: {run} held out none of the normals whose features are kept. Delete those.")
        found.append(
            (labels.astype(int), maps, terms(normals["pooled"], normals["patient"], is_trained, test["pooled"]))
        )
    return found


def main() -> None:
    parser = arguments(__doc__, "panel")
    parser.add_argument("--only", nargs="+", default=IMAGES, help="names of sets; all of images by default")
    parser.add_argument("--seeds", nargs="+", default=["0"])
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    sets = {name: of_set(given.panel / name, given.seeds) for name in given.only}
    joined: dict[str, Array] = {}

    def row(name: str, score: Callable[[Array, Terms], Array]) -> Array:
        each = [[roc_auc_score(labels, score(maps, of)) for labels, maps, of in seeds] for seeds in sets.values()]
        found = np.mean(each, axis=1)
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in (*found, np.mean(found))) + " |", flush=True)
        return found

    print(f"Development splits, seeds {', '.join(given.seeds)}; commit {commit()}; {processor()}.\n")
    print("| | " + " | ".join((*sets, "mean")) + " |\n|---|" + "---:|" * (len(sets) + 1))
    row("map", lambda maps, of: maps)
    for names in ALONE:
        row(" + ".join(names), lambda _, of, names=names: together(of, names))
        for weight in WEIGHTS:
            joined[f"{' + '.join(names)}, weight {weight}"] = row(
                f"the same with the map, weight {weight}",
                lambda maps, of, names=names, weight=weight: np.logaddexp(maps, weight * together(of, names)),
            )
    print()
    for number, name in enumerate(sets):
        means = {choice: float(np.delete(found, number).mean()) for choice, found in joined.items()}
        best = max(means, key=means.__getitem__)
        print(f"Without {name} the others would choose: {best} ({means[best]:.4f}).")


if __name__ == "__main__":
    main()

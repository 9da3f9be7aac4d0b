"""Benefit of a federated training for each of three sites: AUROC trained alone, federated, and on all images.

The sites are parts of chest_xray's train split; no image of its test split is read. The sites are synthetic: a patient
is assigned by the mean grey value of the images, with cuts such that the first site gets 60 % of the training normals,
the second 25 %, and the third 15 %. No patient is at two sites, or in both training and test. Usage:

    python benchmarks/federated.py --data XRAY --output OUT [--seeds 0] [--train 400] [--test 300] [--rounds 10]

XRAY holds manifest.csv; NVFlare has to be installed (the extra `federated`). All ways train for the same number of
epochs: the federated sites for 2 in each round. Writes federated.json, table.md, and a folder per seed with all
bundles and results. Existing results are kept.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from shared import ROOT, arguments, commit, machine, read_rows, write_rows, xray_patient

from aeflow_monai import Workflow, config_files
from aeflow_monai.files import read_json, write_json

SITES = {"site_1": 0.60, "site_2": 0.25, "site_3": 0.15}
OPTIONS = {"image_size": [128, 128], "device": "cpu"}
EPOCHS_OF_A_ROUND = 2
WAYS = ("alone", "federated", "together")


class Patient(NamedTuple):
    """The images of a patient, and their mean grey value."""

    name: str
    images: Sequence[Path]
    abnormal: bool
    grey: float


def patients_of(data: Path, abnormal: bool, seed: int, n_images: int) -> list[Patient]:
    """Draw patients of the train split until they have `n_images` images; one image of each abnormal patient."""
    images = defaultdict(list)
    for row in read_rows(data / "manifest.csv"):
        if row["split"] == "train" and bool(int(row["abnormal"])) == abnormal:
            images[xray_patient(row["path"])].append(data / row["path"])
    names = sorted(images)
    random.Random(seed).shuffle(names)
    found: list[Patient] = []
    while names and sum(len(patient.images) for patient in found) < n_images:
        own = sorted(images[names[0]])[: 1 if abnormal else None]
        found.append(Patient(names.pop(0), own, abnormal, float(np.mean([np.asarray(Image.open(p)) for p in own]))))
    return found


def cuts_of(patients: Sequence[Patient]) -> list[float]:
    """Return the grey values that separate the sites."""
    greys = np.repeat([patient.grey for patient in patients], [len(patient.images) for patient in patients])
    return [float(cut) for cut in np.quantile(greys, np.cumsum([*SITES.values()])[:-1])]


def write(folder: Path, split: str, patients: Iterable[Patient]) -> None:
    """Write manifest.csv."""
    rows = ([image, split, int(p.abnormal), image.stem, p.name] for p in patients for image in p.images)
    write_rows(folder / "manifest.csv", ["path", "split", "abnormal", "case", "patient"], rows)


def run(config: Sequence[str], kind: str, **options: Any) -> None:
    """Run the bundle in this process."""
    workflow = Workflow(config, workflow_type=kind, logging_file=False, **options)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def train(data: Path, bundle: Path, epochs: int, seed: int) -> None:
    if not (bundle / "models/model.pt").is_file():
        given = {"dataset_dir": str(data), "output_dir": str(bundle), "epochs": epochs, "seed": seed, **OPTIONS}
        run(config_files("train", "chest_xray"), "train", **given)


def train_federated(sites: Path, bundles: Path, rounds: int, seed: int) -> None:
    if all((bundles / name / "models/model.pt").is_file() for name in SITES):
        return
    command = [sys.executable, str(ROOT / "docs/examples/federated/job.py"), "--data", str(sites)]
    command += ["--output", str(bundles), "--rounds", str(rounds), "--epochs", str(EPOCHS_OF_A_ROUND)]
    command += ["--preset", "chest_xray"]
    for name, value in {**OPTIONS, "seed": seed}.items():
        command += ["--set", f"{name}={value}"]
    subprocess.run(command, check=True)


def evaluate(bundle: Path, data: Path, results: Path) -> dict[str, Any]:
    if not (results / "metrics.json").is_file():
        run([str(bundle / "configs/evaluate.yaml")], "infer", dataset_dir=str(data), output_dir=str(results))
    return read_json(results / "metrics.json")


def of_a_seed(data: Path, output: Path, seed: int, n_train: int, n_test: int, rounds: int) -> dict[str, Any]:
    """Train and test all ways, and return the results of each site."""
    normals = patients_of(data, False, seed, n_train + n_test)
    counts = np.cumsum([len(patient.images) for patient in normals])
    n_trained = int(np.searchsorted(counts, n_train)) + 1
    trained = normals[:n_trained]
    tested = [*normals[n_trained:], *patients_of(data, True, seed, n_test)]
    cuts = cuts_of(trained)
    sites, tests = output / "sites", output / "tests"
    at = {name: lambda p, number=number: np.searchsorted(cuts, p.grey) == number for number, name in enumerate(SITES)}
    for name, is_here in at.items():
        write(sites / name, "train", filter(is_here, trained))
        write(tests / name, "test", filter(is_here, tested))
    write(output / "all", "train", trained)

    train_federated(sites, output / "federated", rounds, seed)
    epochs = rounds * EPOCHS_OF_A_ROUND
    train(output / "all", output / "together", epochs, seed)
    found = {}
    for name, is_here in at.items():
        train(sites / name, output / "alone" / name, epochs, seed)
        bundles = {way: output / way / name if way != "together" else output / way for way in WAYS}
        metrics = {way: evaluate(bundles[way], tests / name, output / "results" / way / name) for way in WAYS}
        report = metrics["alone"]
        found[name] = {
            "n_trained": sum(len(patient.images) for patient in trained if is_here(patient)),
            **{count: report[count] for count in ("n_normal", "n_abnormal")},
            "trivial": max(report["baselines"].values()),
            **{way: metrics[way]["auroc"] for way in WAYS},
            "ci95": {way: metrics[way]["auroc_ci95"] for way in WAYS},
        }
    return found


def table(report: dict[str, dict[str, Any]]) -> str:
    """Format means over the seeds with smallest and largest, or for one seed the 95 % bootstrap interval."""
    lines = ["| site | normals trained on | normal / abnormal tested | trivial | alone | federated | all together |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name in SITES:
        rows = [found[name] for found in report.values()]
        counts = [round(np.mean([row[key] for row in rows])) for key in ("n_trained", "n_normal", "n_abnormal")]
        cells = []
        for key in ("trivial", *WAYS):
            values = [row[key] for row in rows]
            low, high = rows[0]["ci95"].get(key, (0, 0)) if len(rows) == 1 else (min(values), max(values))
            cells.append(f"{np.mean(values):.3f}" + (f" ({low:.3f} to {high:.3f})" if key != "trivial" else ""))
        lines.append(f"| {name} | {counts[0]} | {counts[1]} / {counts[2]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, "data", "output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", type=int, default=400, help="normal images to train on, at all sites together")
    parser.add_argument("--test", type=int, default=300, help="normal images, and abnormal patients, to test on")
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    report = {}
    for seed in given.seeds:
        folder = given.output / f"seed{seed}"
        report[str(seed)] = of_a_seed(given.data, folder, seed, given.train, given.test, given.rounds)
        about = {"commit": commit(), "machine": machine(), "rounds": given.rounds}
        write_json(given.output / "federated.json", {**about, "seeds": report})
        (given.output / "table.md").write_text(table(report) + "\n", encoding="utf-8")
    print(table(report))


if __name__ == "__main__":
    main()

"""Benefit of a few labelled abnormal images: a curve over 0, 5, 20 and 100 pneumonia images of chest X-rays.

Each point is a training by the bundle with the presets chest_xray and semi_supervised, and an evaluation of the
resulting bundle. Labelled images come from the official train split; a larger number includes the images of a smaller
one, at most one image per patient. Calibration and thresholds use held-out normals only. Usage:

    python benchmarks/labelled_abnormal.py --data XRAY --output DIR [--protocol development] [--counts 0 5 20 100]
        [--seed 0] [--loss#weight 0.25, or any other option of the bundle's training]

XRAY holds manifest.csv (path,split,abnormal). Protocol "development" never opens the official test split: it tests on
200 normal and 400 pneumonia images of the train split, of patients not used for fitting, drawn by the seed. Protocol
"test" trains on the train split and tests on the official test split; patients whose name occurs in both are not among
the labelled ones. Writes labelled_abnormal.json, and a folder per protocol, seed and number of labelled images.
Existing points are kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from shared import arguments, evaluate, parse_with_options, read_rows, run_bundle, write_rows, xray_patient

from aeflow_monai import config_files
from aeflow_monai.files import read_json, write_json

N_TEST_NORMAL, N_TEST_ABNORMAL = 200, 400
Row = dict[str, str]


def patient(row: Row) -> str:
    """Return the patient of an image."""
    return xray_patient(row["path"])


def in_groups(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    """Return the rows grouped by patient, with patients in random order."""
    patients = sorted({patient(row) for row in rows})
    place = {patients[i]: order for order, i in enumerate(rng.permutation(len(patients)))}
    return sorted(rows, key=lambda row: (place[patient(row)], row["path"]))


def taken(rows: list[Row], count: int) -> tuple[list[Row], list[Row]]:
    """Split off the first rows, and return them and the rows of all other patients."""
    first = rows[:count]
    seen = {patient(row) for row in first}
    return first, [row for row in rows if patient(row) not in seen]


def write_manifest(data: Path, folder: Path, protocol: str, seed: int) -> None:
    """Write the protocol's manifest.csv: training images (normal, and abnormal to choose from) and test images."""
    rows = read_rows(data / "manifest.csv")
    train = [row for row in rows if row["split"] == "train"]
    normal = [row for row in train if row["abnormal"] == "0"]
    abnormal = [row for row in train if row["abnormal"] == "1"]
    rng = np.random.default_rng(seed)
    if protocol == "development":
        test_normal, normal = taken(in_groups(normal, rng), N_TEST_NORMAL)
        test_abnormal, abnormal = taken(in_groups(abnormal, rng), N_TEST_ABNORMAL)
        test = test_normal + test_abnormal
    else:
        test = [row for row in rows if row["split"] == "test"]
        tested = {patient(row) for row in test}
        abnormal = [row for row in in_groups(abnormal, rng) if patient(row) not in tested]
    one_each = list({patient(row): row for row in abnormal}.values())
    sections = (("train", normal + one_each), ("test", test))
    members = ([data / r["path"], split, r["abnormal"], patient(r)] for split, some in sections for r in some)
    write_rows(folder / "manifest.csv", ["path", "split", "abnormal", "patient"], members)


def make_point(folder: Path, data: Path, count: int, seed: int, options: dict[str, str]) -> None:
    """Train with `count` labelled images, evaluate, and write point.json."""
    own = {"dataset_dir": data, "output_dir": folder, "seed": seed, "labelled_abnormal": count}
    taken = run_bundle(config_files("train", "chest_xray", "semi_supervised"), {**own, **options}, "train")
    metrics = evaluate(folder, data, folder / "results")
    point = {"labelled": count, "options": options, "train_seconds": taken, **metrics}
    write_json(folder / "point.json", point)


def main() -> None:
    parser = arguments(__doc__, "data", "output")
    parser.add_argument("--protocol", choices=["development", "test"], default="development")
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 5, 20, 100])
    parser.add_argument("--seed", type=int, default=0)
    given, options = parse_with_options(parser)

    output = given.output / f"{given.protocol}_seed{given.seed}"
    write_manifest(given.data, output / "data", given.protocol, given.seed)
    points = []
    for count in given.counts:
        folder = output / f"labelled_{count}"
        done = folder / "point.json"
        if not done.is_file():
            make_point(folder, output / "data", count, given.seed, options)
        points.append(read_json(done))
        if points[-1]["options"] != options:
            raise SystemExit(f"{folder} was made with other options, {points[-1]['options']}: give another --output.")
    report = {"protocol": given.protocol, "seed": given.seed, "points": points}
    write_json(output / "labelled_abnormal.json", report)

    print(f"\nProtocol {given.protocol}, seed {given.seed}; 95 % intervals over cases in brackets.\n")
    print("| labelled pneumonia images | AUROC | sensitivity | specificity |\n|---|---|---|---|")
    for point in points:
        cells = []
        for name in ("auroc", "sensitivity", "specificity"):
            low, high = point[f"{name}_ci95"]
            cells.append(f"{point[name]:.4f} [{low:.3f}, {high:.3f}]")
        print(f"| {point['labelled']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""What a few labelled abnormal images add: a curve over 0, 5, 20 and 100 pneumonia images of the chest X-rays.

Each point is a training by the bundle with configs/chest_xray.yaml and semi_supervised.yaml, and an evaluation
by the bundle. Labelled images come from the official train split; a larger number holds the images of a smaller one,
at most one image of a patient. Calibration and thresholds see held-out normals only. Usage:

    python benchmarks/labelled_abnormal.py --data XRAY --output DIR [--protocol development] [--counts 0 5 20 100]
        [--seed 0] [--abnormal_weight 0.25, or any other option of the bundle's training]

XRAY holds manifest.csv (path,split,abnormal). Protocol "development" never opens the official test split: it tests on
200 normal and 400 pneumonia images of the train split, of patients that nothing is fitted on, drawn by the seed.
Protocol "test" trains on the train split and tests on the official test split; patients whose name stands in both are
not among the labelled ones. Written to the output: labelled_abnormal.json, and a folder per protocol, seed and number
of labelled images. A point that is there is not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "bundle/configs"
N_TEST_NORMAL, N_TEST_ABNORMAL = 200, 400
Row = dict[str, str]


def patient(row: Row) -> str:
    """Who is on the image, by the file's name (person23_bacteria_76, NORMAL2-IM-0523-0001)."""
    name = Path(row["path"]).stem
    found = re.match(r"person\d+|(NORMAL2-)?IM-\d+", name)
    return found.group(0) if found else name


def in_groups(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    """The rows patient by patient, patients in random order."""
    patients = sorted({patient(row) for row in rows})
    place = {patients[i]: order for order, i in enumerate(rng.permutation(len(patients)))}
    return sorted(rows, key=lambda row: (place[patient(row)], row["path"]))


def taken(rows: list[Row], count: int) -> tuple[list[Row], list[Row]]:
    """The first rows, and those of all other patients."""
    first = rows[:count]
    seen = {patient(row) for row in first}
    return first, [row for row in rows if patient(row) not in seen]


def write_manifest(data: Path, folder: Path, protocol: str, seed: int) -> None:
    """Write the protocol's manifest.csv: what to train on (normal, and abnormal to choose from) and what to test on."""
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
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
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "split", "abnormal", "patient"])
        for split, members in (("train", normal + one_each), ("test", test)):
            writer.writerows([data / row["path"], split, row["abnormal"], patient(row)] for row in members)


def bundle(names: list[Path], command: list[str], options: dict[str, Any]) -> None:
    """Run the bundle with configs and options, in a process of its own."""
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    files = ["--config_file", str([str(name) for name in names])]
    subprocess.run([sys.executable, "-m", "monai.bundle", "run", *command, *files, *given], check=True)


def make_point(folder: Path, data: Path, count: int, seed: int, options: dict[str, str]) -> None:
    """Train with this many labelled images, evaluate, and write point.json."""
    common = {"dataset_dir": data, "output_dir": folder, "seed": seed}
    network = [CONFIGS / "train.yaml", ROOT / "configs/chest_xray.yaml"]
    start = time.perf_counter()
    training = [*network, CONFIGS / "semi_supervised.yaml"]
    bundle(training, ["train"], {**common, "labelled_abnormal": count, **options})
    seconds = time.perf_counter() - start
    bundle([*network, CONFIGS / "evaluate.yaml"], [], common)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    point = {"labelled": count, "options": options, "train_seconds": seconds, **metrics}
    (folder / "point.json").write_text(json.dumps(point, indent=2), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--protocol", choices=["development", "test"], default="development")
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 5, 20, 100])
    parser.add_argument("--seed", type=int, default=0)
    given, passed_on = parser.parse_known_args()
    options = dict(zip((name.removeprefix("--") for name in passed_on[::2]), passed_on[1::2], strict=True))

    output = given.output.absolute() / f"{given.protocol}_seed{given.seed}"
    write_manifest(given.data.absolute(), output / "data", given.protocol, given.seed)
    points = []
    for count in given.counts:
        folder = output / f"labelled_{count}"
        done = folder / "point.json"
        if not done.is_file():
            make_point(folder, output / "data", count, given.seed, options)
        points.append(json.loads(done.read_text(encoding="utf-8")))
        if points[-1]["options"] != options:
            raise SystemExit(f"{folder} was made with other options, {points[-1]['options']}: give another --output.")
    report = {"protocol": given.protocol, "seed": given.seed, "points": points}
    (output / "labelled_abnormal.json").write_text(json.dumps(report, indent=2), encoding="utf-8")

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

"""What calibrating anew is worth: a model of one site's normals, and thresholds of another's.

Half of a test split's normal patients become the other site's normals, on which calibrate.yaml sets score and
thresholds anew; the other half and all abnormal images are scored by the old model and the new one. Usage:

    python benchmarks/site_calibration.py --data XRAY --model RUN/model.pt --output OUT
        [--config configs/chest_xray.yaml] [--seed 0]

XRAY holds manifest.csv (path,split,abnormal, and patient if known). Written to the output: site_calibration.json, and
a folder for each model.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from labelled_abnormal import CONFIGS, ROOT, bundle

from aeflow_monai.data.datalist import load_datalist, split_normals

FIGURES = ("auroc", "sensitivity", "specificity", "promised_specificity", "promise_holds")


def write_manifest(folder: Path, split: str, items: list[dict[str, str]]) -> None:
    """Write the items as manifest.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "split", "abnormal", "case", "patient"])
        table.writerows([item["image"], split, item["label"], item["case"], item["patient"]] for item in items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/chest_xray.yaml")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model, config, output = given.model.absolute(), given.config.absolute(), given.output.absolute()
    items = load_datalist(str(given.data.absolute()), "test")
    tested, site = split_normals(items, 0.5, given.seed)
    write_manifest(output / "site", "train", site)
    write_manifest(output / "test", "test", [*tested, *(item for item in items if item["label"] == 1)])

    own = {"dataset_dir": output / "site", "ckpt_path": model, "output_dir": output / "new"}
    bundle([CONFIGS / "train.yaml", config, CONFIGS / "calibrate.yaml"], ["calibrate"], own)
    report = {}
    for name, path in (("old", model), ("new", output / "new/model.pt")):
        options = {"dataset_dir": output / "test", "ckpt_path": path, "results_dir": output / name}
        bundle([CONFIGS / "train.yaml", config, CONFIGS / "evaluate.yaml"], [], options)
        metrics = json.loads((output / name / "metrics.json").read_text(encoding="utf-8"))
        report[name] = {figure: metrics[figure] for figure in FIGURES}
    (output / "site_calibration.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

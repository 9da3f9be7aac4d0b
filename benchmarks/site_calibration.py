"""What calibrating anew is worth: a model of one site's normals, and thresholds of another's.

Half of a test split's normal patients become the other site's normals, on which calibrate.yaml sets score and
thresholds anew; the other half and all abnormal images are scored by the old model and the new one. Usage:

    python benchmarks/site_calibration.py --data XRAY --model RUN/model.pt --output OUT
        [--config configs/chest_xray.yaml] [--seed 0]

XRAY holds manifest.csv (path,split,abnormal). Written to the output: site_calibration.json, and a folder for each
model.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from aeflow_monai import load_datalist, split_normals

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "bundle/configs"
FIGURES = ("auroc", "sensitivity", "specificity", "promised_specificity", "promise_holds")


def bundle(program: str, files: list[Path], options: dict[str, str]) -> None:
    """Run the bundle in a process of its own."""
    command = [sys.executable, "-m", "monai.bundle", "run", *([program] if program else [])]
    command += ["--config_file", str([str(file) for file in files])]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    subprocess.run(command, cwd=ROOT, check=True)


def write_manifest(folder: Path, split: str, items: list[dict[str, str]]) -> None:
    """Write the items as manifest.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "split", "abnormal", "case"])
        table.writerows([item["image"], split, item["label"], item["case"]] for item in items)


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

    own = {"dataset_dir": str(output / "site"), "ckpt_path": str(model), "output_dir": str(output / "new")}
    bundle("calibrate", [CONFIGS / "train.yaml", config, CONFIGS / "calibrate.yaml"], own)
    report = {}
    for name, path in (("old", model), ("new", output / "new/model.pt")):
        options = {"dataset_dir": str(output / "test"), "ckpt_path": str(path), "results_dir": str(output / name)}
        bundle("", [CONFIGS / "train.yaml", config, CONFIGS / "evaluate.yaml"], options)
        metrics = json.loads((output / name / "metrics.json").read_text(encoding="utf-8"))
        report[name] = {figure: metrics[figure] for figure in FIGURES}
    (output / "site_calibration.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

"""Benefit of recalibrating or retraining a model of one site's normals for images of another site.

Half of a test split's normal patients become the other site's normals. On these, calibrate.yaml fits score and
thresholds ("calibrated"), and train.yaml trains another model with the same options ("trained"). The other half and
the abnormal images of other patients are scored by the old model and both new ones. Usage:

    python benchmarks/site_calibration.py --data XRAY --model RUN --output OUT [--seed 0]

XRAY holds manifest.csv (path,split,abnormal, and patient if known); RUN is the bundle of a training. Writes
site_calibration.json, the new bundles, a folder of results for each model, and the site as a data set, on which other
methods can be fitted (`detection/run.py --set OUT/site`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import arguments, evaluate, run_bundle, write_rows

from aeflow_monai import load_datalist
from aeflow_monai.data import split_normals
from aeflow_monai.files import write_json

FIGURES = ("auroc", "sensitivity", "specificity", "expected_specificity", "is_specificity_contradicted")


def write_manifest(folder: Path, **items: Sequence[dict[str, Any]]) -> None:
    """Write the items of each split as manifest.csv."""
    rows = [
        [item["image"], split, item["label"], item["case"], item["patient"]]
        for split, of_split in items.items()
        for item in of_split
    ]
    write_rows(folder / "manifest.csv", ["path", "split", "abnormal", "case", "patient"], rows)


def split_site(items: Sequence[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split off the normals of half of the normal patients from the items of all other patients."""
    _, site = split_normals(items, 0.5, seed)
    known = {item["patient"] for item in site}
    return list(site), [item for item in items if item["patient"] not in known]


def main() -> None:
    parser = arguments(__doc__, "data", "model", "output")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    output = given.output
    items = load_datalist(str(given.data), "test")
    site, tested = split_site(items, given.seed)
    write_manifest(output / "site", train=site, test=tested)

    models = {"old": given.model, "calibrated": output / "calibrated", "trained": output / "trained"}
    for name, verb in (("calibrated", "calibrate"), ("trained", "train")):
        options = {"dataset_dir": output / "site", "output_dir": models[name]}
        run_bundle([given.model / f"configs/{verb}.yaml"], options, *(["train"] if verb == "train" else []))
    report = {}
    for name, model in models.items():
        metrics = evaluate(model, output / "site", output / f"{name}_results")
        report[name] = {figure: metrics[figure] for figure in FIGURES}
    write_json(output / "site_calibration.json", report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

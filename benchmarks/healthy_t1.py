"""Lesions planted in healthy T1 brains: AE-Flow trained and evaluated by the bundle, beside a trivial baseline.

The whole protocol in one command: the data set is made (planted_lesions.py), the bundle trains with
configs/healthy_t1.yaml and evaluates, and the same evaluation is run with |intensity - mean training volume| as the
anomaly map (trivial_baseline.py), calibrated on the same held-out cases. The truth is synthetic: there is no domain
shift, and lesions do what no disease does. Voxels are counted twice: all of them, as the bundle reports, where an empty
background is easy to tell from a lesion; and those of the brain only, which is the number to look at. For each planted
lesion: the AUROC of its voxels against those of its brain without lesion (mean over lesions of a size or contrast), and
whether any of its voxels exceeds the stored map threshold. Names with "oracle" are chosen on the test labels.
Lesions lie in the middle of the head, so the brain's area alone tells slices with lesions from others: it has its own
row, and slices are compared among those of like area too. Usage:

    python benchmarks/healthy_t1.py --data DIR --output DIR [--seed 0] [--n_test 20] [--epochs 6, or any bundle option]

DIR holds healthy_t1 and ms_lesion/gold_masks_all30. Options of the bundle go to the training and to both evaluations;
paths among them have to be absolute. Written to the output: healthy_t1.json, the data set (planted), and
what the bundle writes, of AE-Flow (aeflow) and of the baseline (baseline).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from aeflow_monai.engine.workflow import keep_freed_memory
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from scipy.stats import rankdata
from slices_by_area import slices_by_area
from trivial_baseline import DifferenceInferer, mean_volume

from aeflow_monai.data.readers import LoadCased
from aeflow_monai.metrics import VoxelMetrics

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "bundle/configs"
ROWS = {
    "slice AUROC": ("localisation", "slice_auroc"),
    "slice AUROC, pairs of like brain area": ("slices", "auroc_of_like_area"),
    "slice AUROC of the brain's area alone": ("slices", "auroc_of_area"),
    "slice average precision": ("localisation", "slice_average_precision"),
    "case AUROC": ("detection", "auroc"),
    "case average precision": ("detection", "average_precision"),
    "voxel AUROC, all voxels": ("localisation", "voxel_auroc"),
    "voxel average precision, all voxels": ("localisation", "voxel_average_precision"),
    "AUPRO, all voxels": ("localisation", "aupro"),
    "voxel AUROC, brain": ("brain", "voxel_auroc"),
    "voxel average precision, brain": ("brain", "voxel_average_precision"),
    "AUPRO, brain": ("brain", "aupro"),
    "Dice at the stored threshold": ("localisation", "dice"),
    "oracle best Dice": ("localisation", "oracle_best_dice"),
    "FROC score": ("localisation", "froc_score"),
}


class BrainReport:
    """A handler that counts the voxels of the brain, and looks at each planted lesion on its own.

    The brain is what is above 0 in the file. Slices that are too empty for the network have the map value 0.
    """

    def __init__(self, lesions: Path, scorer: Any) -> None:
        self.scorer = scorer
        self.voxels = VoxelMetrics()
        self.load = LoadCased("image")
        self.areas: dict[str, list[float]] = {}  # share of each slice that is brain, from inferior
        self.lesions: list[dict[str, Any]] = []
        self.planted: dict[str, list[dict[str, str]]] = defaultdict(list)
        with lesions.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                self.planted[row["case"]].append(row)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Take the cases of this batch."""
        for source, scored in zip(engine.state.batch, engine.state.output, strict=True):
            anomaly_map = np.asarray(scored["anomaly_map"])
            brain = np.asarray(self.load({"image": source["image"].meta["filename_or_obj"]})["image"]) > 0
            truth = np.asarray(source["truth"]) if "truth" in source else np.zeros(brain.shape)
            self.voxels.update(anomaly_map, truth, brain)
            upright = source["image"].as_tensor()[0]
            self.areas[str(source["case"])] = (upright > 0).float().mean(dim=(0, 1)).tolist()
            normal = anomaly_map[brain & (truth == 0)]
            for row in self.planted[str(source["case"])]:
                lesion = anomaly_map[truth == int(row["label"])]
                ranks = rankdata(np.concatenate([lesion, normal]))[: len(lesion)]
                auroc = (ranks.sum() - len(lesion) * (len(lesion) + 1) / 2) / (len(lesion) * len(normal))
                above = bool((lesion > float(self.scorer.map_threshold)).any())
                self.lesions.append({**row, "auroc": float(auroc), "above_map_threshold": above})

    def compute(self) -> dict[str, Any]:
        """The brain's voxels in sum, and lesions in groups."""
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for lesion in self.lesions:
            groups[lesion["size"]].append(lesion)
        for lesion in sorted(self.lesions, key=lambda each: float(each["contrast"])):
            groups[f"contrast {lesion['contrast']}"].append(lesion)
        return {
            "brain": self.voxels.compute(float(self.scorer.map_threshold)),
            "lesion_groups": {
                name: {
                    "n": len(group),
                    "mean_auroc": float(np.mean([lesion["auroc"] for lesion in group])),
                    "above_map_threshold": float(np.mean([lesion["above_map_threshold"] for lesion in group])),
                }
                for name, group in groups.items()
            },
            "lesions": self.lesions,
        }


def workflow(config: Path, options: dict[str, Any]) -> ConfigWorkflow:
    files = [str(CONFIGS / "train.yaml"), str(config), str(CONFIGS / "evaluate.yaml")]
    return ConfigWorkflow(
        config_file=files,
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type="eval",
        **options,
    )


def evaluate(bundle: ConfigWorkflow, results: Path, lesions: Path) -> dict[str, Any]:
    """Run the bundle's evaluation with one handler more."""
    bundle.initialize()
    brain = BrainReport(lesions, bundle.parser.get_parsed_content("network"))
    brain.attach(bundle.parser.get_parsed_content("evaluator"))
    start = time.perf_counter()
    bundle.run()
    seconds = time.perf_counter() - start
    bundle.finalize()
    report = {
        "seconds": seconds,
        **brain.compute(),
        "slices": slices_by_area(results / "slice_scores.csv", brain.areas),
    }
    for name, file in (("detection", "metrics.json"), ("localisation", "localisation.json")):
        report[name] = json.loads((results / file).read_text(encoding="utf-8"))
    return report


def baseline_workflow(config: Path, options: dict[str, Any], model: Path, folder: Path) -> ConfigWorkflow:
    """The bundle with the baseline's map in place of the network's, and its thresholds in the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    calibrated = folder / "model.pt"
    bundle = workflow(config, options | {"results_dir": str(folder), "ckpt_path": str(calibrated)})
    parsed = {name: bundle.parser.get_parsed_content(name) for name in ("preprocessing", "split", "slicer", "network")}
    fitted, held_out = ((parsed["preprocessing"](item)["image"] for item in items) for items in parsed["split"])
    mean = mean_volume(parsed["slicer"], fitted)
    inferer = DifferenceInferer(mean, parsed["slicer"], parsed["network"])
    thresholds = inferer.thresholds(held_out, bundle.parser.get_parsed_content("specificity"))
    checkpoint = torch.load(model, map_location="cpu", weights_only=True)
    for name, value in thresholds.items():
        checkpoint["model"][name].fill_(value)
    torch.save(checkpoint, calibrated)
    bundle.parser["inferer"] = inferer
    return bundle


def table(reports: dict[str, dict[str, Any]]) -> str:
    lines = ["| metric | " + " | ".join(reports) + " |", "|---|" + "---:|" * len(reports)]
    for name, (section, key) in ROWS.items():
        cells = []
        for report in reports.values():
            low_high = report[section].get(f"{key}_ci95")
            interval = f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
            cells.append(f"{report[section][key]:.4f}{interval}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for group, first in next(iter(reports.values()))["lesion_groups"].items():
        found = [report["lesion_groups"][group] for report in reports.values()]
        cells = [f"{each['mean_auroc']:.3f} / {each['above_map_threshold']:.0%}" for each in found]
        lines.append(f"| {first['n']} lesions, {group}: AUROC / above map threshold | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n_test", type=int, default=20, help="held-out subjects; half of them get lesions")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/healthy_t1.yaml")
    parser.add_argument("--model", type=Path, help="evaluate this one, made from the same data, and train none")
    given, passed_on = parser.parse_known_args()
    if len(passed_on) % 2 or not all(name.startswith("--") for name in passed_on[::2]):
        parser.error(f"options of the bundle are given as --name value; got {' '.join(passed_on)}")
    keep_freed_memory()
    print(f"seed {given.seed}; torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")

    for name in ("data", "output", "config", "model"):
        if getattr(given, name) is not None:
            setattr(given, name, getattr(given, name).absolute())
    os.chdir(ROOT)  # where MONAI looks for a bundle whose config files lie in several folders
    output = given.output
    planted, trained = output / "planted", output / "aeflow"
    command = [sys.executable, str(ROOT / "benchmarks/planted_lesions.py"), "--healthy", str(given.data / "healthy_t1")]
    command += ["--shapes", str(given.data / "ms_lesion/gold_masks_all30"), "--output", str(planted)]
    subprocess.run([*command, "--n_test", str(given.n_test), "--seed", str(given.seed)], check=True)

    options = {"dataset_dir": str(planted), "output_dir": str(trained), "seed": given.seed}
    options |= {name[2:]: yaml.safe_load(value) for name, value in zip(passed_on[::2], passed_on[1::2], strict=True)}
    report: dict[str, Any] = {"seed": given.seed, "n_test": given.n_test, "options": passed_on, "train_seconds": None}
    if given.model is None:
        command = [sys.executable, "-m", "monai.bundle", "run", "train"]
        command += ["--config_file", str([str(CONFIGS / "train.yaml"), str(given.config)])]
        command += ["--dataset_dir", str(planted), "--output_dir", str(trained), "--seed", str(given.seed), *passed_on]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        report["train_seconds"] = time.perf_counter() - start
        print(f"training took {report['train_seconds']:.0f} s, with the start of Python and the reading of the data")
    model = given.model or trained / "model.pt"

    lesions = planted / "lesions.csv"
    bundle = workflow(given.config, options | {"results_dir": str(trained), "ckpt_path": str(model)})
    reports = {"AE-Flow": evaluate(bundle, trained, lesions)}
    folder = output / "baseline"
    reports["trivial baseline"] = evaluate(baseline_workflow(given.config, options, model, folder), folder, lesions)
    report |= reports
    (output / "healthy_t1.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"\nSynthetic lesions, seed {given.seed}; 95 % intervals over cases in brackets.\n")
    print(table(reports))


if __name__ == "__main__":
    main()

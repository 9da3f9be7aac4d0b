"""Lesions planted in healthy T1 brains: AE-Flow, trained and evaluated by the bundle, against a trivial baseline.

The whole protocol in one command: the data set is made (planted_lesions.py), the bundle trains with the preset
healthy_t1 and evaluates, and the same evaluation is run with |intensity - mean training volume| as the anomaly map
(trivial_baseline.py), calibrated on the same held-out cases. The truth is synthetic: there is no domain shift, and the
lesions imitate no disease. Voxel metrics are computed twice: over all voxels, as the bundle reports, where an empty
background is easily distinguished from a lesion; and over the brain only, which is the meaningful number. For each
planted lesion: the AUROC of its voxels against voxels of its brain without lesion (mean over lesions of a size or
contrast), and whether any of its voxels exceeds the stored map threshold. Names with "oracle" are chosen on the test
labels.
Lesions lie in the middle of the head, so the brain's area alone separates slices with lesions from others: it has its
own row, and slices are also compared among those of similar area. Usage:

    python benchmarks/healthy_t1.py --data DIR --output DIR [--seed 0] [--n_test 20] [--epochs 6, or any bundle option]

DIR holds healthy_t1 and ms_lesion/gold_masks_all30. Options of the bundle apply to the training. Writes
healthy_t1.json, the data set (planted), the bundle of AE-Flow (aeflow) with its results, and the results of the
baseline (baseline).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import planted_lesions
import torch
from ignite.engine import Engine, Events
from map_inferer import Answer, MapMethod, axial_stack, evaluator_of
from monai.bundle import ConfigParser
from scipy.stats import rankdata
from shared import arguments, machine, parse_with_options, read_rows, run_bundle, seconds
from slices_by_area import areas_of, slices_by_area
from trivial_baseline import DifferenceMap, mean_volume

from aeflow_monai import Model, Score, Workflow, config_files
from aeflow_monai.data import LoadCased
from aeflow_monai.engine.inference.allocator import keep_freed_memory
from aeflow_monai.files import read_json, write_json
from aeflow_monai.metrics import VoxelMetrics

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
    """A handler that evaluates the voxels of the brain, and each planted lesion separately.

    The brain is where the file is above 0. Skipped slices have the map value 0.
    """

    def __init__(self, lesions: Path, score: Score) -> None:
        self.threshold = score.thresholds["map_threshold"]
        self.voxels = VoxelMetrics()
        self.load = LoadCased("image")
        self.areas: dict[str, dict[int, float]] = {}  # fraction of each slice that is brain, by slice number
        self.lesions: list[dict[str, Any]] = []
        self.planted: dict[str, list[dict[str, str]]] = defaultdict(list)
        for row in read_rows(lesions):
            self.planted[row["case"]].append(row)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add the cases of a batch."""
        for source, scored in zip(engine.state.batch, engine.state.output, strict=True):
            anomaly_map = np.asarray(scored["anomaly_map"])
            brain = np.asarray(self.load({"image": source["image"].meta["filename_or_obj"]})["image"]) > 0
            truth = np.asarray(source["original_lesion"]) if "original_lesion" in source else np.zeros(brain.shape)
            self.voxels.update(anomaly_map, truth, brain)
            self.areas[str(source["case"])] = areas_of(source["image"])
            normal = anomaly_map[brain & (truth == 0)]
            for row in self.planted[str(source["case"])]:
                lesion = anomaly_map[truth == int(row["label"])]
                ranks = rankdata(np.concatenate([lesion, normal]))[: len(lesion)]
                auroc = (ranks.sum() - len(lesion) * (len(lesion) + 1) / 2) / (len(lesion) * len(normal))
                above = bool((lesion > self.threshold).any())
                self.lesions.append({**row, "auroc": float(auroc), "above_map_threshold": above})

    def compute(self) -> dict[str, Any]:
        """Return metrics of all brain voxels, and of lesions by group."""
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for lesion in self.lesions:
            groups[lesion["size"]].append(lesion)
        for lesion in sorted(self.lesions, key=lambda each: float(each["contrast"])):
            groups[f"contrast {lesion['contrast']}"].append(lesion)
        return {
            "brain": self.voxels.compute(self.threshold),
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


def report_of(evaluator: Engine, score: Score, results: Path, lesions: Path) -> dict[str, Any]:
    """Run an evaluation with an additional `BrainReport`."""
    brain = BrainReport(lesions, score)
    brain.attach(evaluator)
    taken = seconds(evaluator.run)
    return {
        "seconds": taken,
        **brain.compute(),
        "slices": slices_by_area(results / "slice_scores.csv", brain.areas),
        "detection": read_json(results / "metrics.json"),
        "localisation": read_json(results / "localisation.json"),
    }


def aeflow_report(run: Path, dataset_dir: Path, results: Path) -> dict[str, Any]:
    """Evaluate the trained bundle."""
    options = {"dataset_dir": str(dataset_dir), "output_dir": str(results)}
    workflow = Workflow(str(run / "configs/evaluate.yaml"), workflow_type="infer", logging_file=False, **options)
    workflow.initialize()
    evaluator, network = (workflow.parser.get_parsed_content(name) for name in ("evaluator", "network"))
    network.load_state_dict(Model(run).detector.state_dict())  # the threshold is read before the run
    report = report_of(evaluator, network.score, results, dataset_dir / "lesions.csv")
    workflow.finalize()
    return report


def parse(config: Path, **options: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.update(options)
    return parser


def baseline_report(run: Path, dataset_dir: Path, results: Path) -> dict[str, Any]:
    """Evaluate the baseline, fitted on the training normals and calibrated on the held-out ones."""
    training = parse(run / "configs/train.yaml", dataset_dir=str(dataset_dir))
    preprocessing, slicer, split = (training.get_parsed_content(name) for name in ("preprocessing", "slicer", "split"))

    def volumes(items: Sequence[Mapping[str, Any]]) -> Iterator[torch.Tensor]:
        return (preprocessing(item)["image"] for item in items)

    method: MapMethod = DifferenceMap(mean_volume(slicer, volumes(split[0])), Model(run).detector.score)

    def answers() -> Iterator[tuple[str, Answer]]:
        for item, volume in zip(split[1], volumes(split[1]), strict=True):
            yield item["patient"], method.infer(*axial_stack(slicer, volume))

    method.fit_thresholds(answers(), training["specificity"])
    own = {"dataset_dir": str(dataset_dir), "output_dir": str(results)}
    evaluator = evaluator_of(parse(run / "configs/evaluate.yaml", **own), method)
    return report_of(evaluator, method.score, results, dataset_dir / "lesions.csv")


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
    parser = arguments(__doc__, "data", "output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n_test", type=int, default=20, help="held-out subjects; half of them get lesions")
    parser.add_argument("--config", default="healthy_t1", help="name of a preset, or path")
    parser.add_argument("--model", type=Path, help="evaluate this bundle, made from the same data, and train none")
    given, options = parse_with_options(parser)
    keep_freed_memory()
    print(f"seed {given.seed}; {machine()}")

    output, planted, trained = given.output, given.output / "planted", given.output / "aeflow"
    healthy = sorted((given.data / "healthy_t1").glob("*.nii.gz"))
    train, test, abnormal = planted_lesions.split(healthy, given.n_test, given.seed)
    shapes = given.data / "ms_lesion/gold_masks_all30"
    digest = planted_lesions.write(healthy, train, test, abnormal, shapes, planted, given.seed)
    print(f"{planted}: sha256 of all files {digest}")

    report: dict[str, Any] = {"seed": given.seed, "n_test": given.n_test, "options": options, "train_seconds": None}
    if given.model is None:
        own = {"dataset_dir": planted, "output_dir": trained, "seed": given.seed, **options}
        report["train_seconds"] = run_bundle(config_files("train", given.config), own, "train")
        print(f"training took {report['train_seconds']:.0f} s, with the start of Python and the reading of the data")
    run = (given.model or trained).absolute()
    reports = {
        "AE-Flow": aeflow_report(run, planted, trained / "results"),
        "trivial baseline": baseline_report(run, planted, output / "baseline"),
    }
    write_json(output / "healthy_t1.json", report | reports)
    print(f"\nSynthetic lesions, seed {given.seed}; 95 % intervals over cases in brackets.\n")
    print(table(reports))


if __name__ == "__main__":
    main()

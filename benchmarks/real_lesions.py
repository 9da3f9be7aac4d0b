"""Real lesions, found within each patient by a model that was trained on other people's healthy T1 volumes.

Tumours (brain_mri) and multiple sclerosis (ms_lesion), T1-weighted. Everything is compared inside of one volume: voxels
of the lesion with those of the same brain without, slices with at least --min_lesion_mm2 of lesion with lesion-free
ones of the same brain (the policy's margin to a lesion kept). So scanner and preprocessing, which tell the data sets
apart, cannot help. Beside AE-Flow stand two trivial maps through the same preprocessing, slices and inversion:
|intensity - mean volume of the healthy| (brains are only roughly aligned: centre on centre, not registered), and
1 - intensity inside the brain (T1 lesions are dark). Voxels count on the file's grid, inside the brain: where the
preprocessed intensity is above 0, and the lesion. Slices that are too empty for the network have the map value 0.

Truths differ: see TRUTHS. That of BraTS-GLI-00001-000 covers the tumour generously, that of TCGA-DU-7294 is automatic.
With --read_all, every image of both folders goes through the preprocessing first, and any failure is an error. Usage:

    python benchmarks/real_lesions.py --data DIR --model FILE --output DIR [--config FILE] [--read_all]

DIR holds brain_mri, ms_lesion and healthy_t1; the file is the model.pt of a training with this config. Written to the
output: real_lesions.json. Nothing is drawn at random.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aeflow_monai.engine.workflow import keep_freed_memory
from monai.bundle import ConfigParser
from monai.data import decollate_batch, list_data_collate
from monai.data.utils import affine_to_spacing
from monai.transforms import Invertd
from sklearn.metrics import average_precision_score, roc_auc_score
from trivial_baseline import DifferenceInferer, MapInferer, mean_volume

from aeflow_monai.engine.saliency import MapScorer
from aeflow_monai.metrics import VoxelMetrics

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "bundle/configs"
PATIENTS = {  # T1, truth, which of its labels are lesion (all if None)
    "BRATS_HG0015": ("brain_mri/{}/BRATS_HG0015_T1.mha", "brain_mri/{}/BRATS_HG0015_truth.mha", None),
    "TCGA-DU-7294": ("brain_mri/{}/t1.nii.gz", "brain_mri/{}/seg_auto.nii.gz", None),
    "BraTS-GLI-00001-000": ("brain_mri/{}/t1.nii.gz", "brain_mri/{}/inpainting_mask.nii.gz", None),
    "nv_10labels": ("brain_mri/{}/t1.nii.gz", "brain_mri/{}/mask_10labels.nii.gz", (1, 2)),
    "patient07": ("ms_lesion/{}/T1.nii.gz", "ms_lesion/{}/GOLD.nii.gz", None),
    "patient19": ("ms_lesion/{}/T1.nii.gz", "ms_lesion/{}/GOLD.nii.gz", None),
}
TRUTHS = {
    "BRATS_HG0015": "expert",
    "TCGA-DU-7294": "automatic fusion",
    "BraTS-GLI-00001-000": "generous cover, no ground truth",
    "nv_10labels": "labels 1 and 2, on the FLAIR lesion",
    "patient07": "expert consensus",
    "patient19": "expert consensus",
}


def parse(config: Path, options: dict[str, Any]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.yaml"), str(config), str(CONFIGS / "evaluate.yaml")])
    parser.update(options)
    return parser


def read_all(data: Path, preprocessing: Any) -> list[dict[str, Any]]:
    """Every image of both folders, masks too, after the preprocessing; those that fail are named at the end."""
    found, failed = [], []
    files = [*(data / "brain_mri").rglob("*"), *(data / "ms_lesion").rglob("*")]
    for file in sorted(path for path in files if path.name.endswith((".nii.gz", ".mha"))):
        name = file.relative_to(data).as_posix()
        try:
            image = preprocessing({"image": str(file), "case": name})["image"].as_tensor()
            low, high = float(image.min()), float(image.max())
            if not (torch.isfinite(image).all() and low >= 0 and 0 < high <= 1):
                raise ValueError(f"the range after preprocessing is [{low}, {high}]")
        except Exception as error:  # all of them are wanted, not the first
            failed.append(f"{name}: {error}")
            print(f"FAILED {failed[-1]}", flush=True)
            continue
        found.append({"file": name, "shape": list(image.shape), "min": low, "max": high, "mean": float(image.mean())})
        print(f"{name}: {tuple(image.shape)}, [{low:.3g}, {high:.3g}], mean {found[-1]['mean']:.3f}", flush=True)
    print(f"{len(found)} files read, {len(failed)} failed")
    if failed:
        raise RuntimeError("Files that cannot be read:\n" + "\n".join(failed))
    return found


def healthy_volumes(files: list[Path], preprocessing: Any) -> Iterator[torch.Tensor]:
    for file in files:
        yield preprocessing({"image": str(file), "case": file.name})["image"]


def dark(stack: torch.Tensor) -> torch.Tensor:
    return (1 - stack) * (stack > 0)


def look_at(
    case: dict[str, Any], labels: tuple[int, ...] | None, parser: ConfigParser, inferers: dict[str, Any]
) -> dict[str, Any]:
    """Metrics of each map of one patient."""
    preprocessing, slicer = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("slicer")
    network = MapScorer(parser.get_parsed_content("network")).eval()
    invert = Invertd(["map", "brain"], preprocessing, "image", nearest_interp=False)
    batch = list_data_collate([preprocessing(case)])
    image = batch["image"]
    (source,) = decollate_batch(batch)
    mask, truth = (
        (source[key] != 0 if labels is None else torch.isin(source[key], torch.tensor(labels)))
        for key in ("mask", "truth")
    )
    kinds = slicer.kinds(mask, "axial", affine_to_spacing(source["mask"].affine, r=3).tolist())
    report: dict[str, Any] = {
        "truth": TRUTHS[case["case"]],
        "shape": list(image.shape[2:]),
        "lesion_ml": float(truth.sum() * np.prod(affine_to_spacing(source["truth"].affine, r=3).tolist()) / 1000),
        "maps": {},
    }
    for name, inferer in inferers.items():
        with torch.no_grad():
            output = inferer(image, network)
        scores = torch.as_tensor(output["slice_scores_axial"])[0].tolist()
        slices = [
            (kind == "abnormal", score)
            for kind, score in zip(kinds, scores, strict=True)
            if kind != "unclear" and not np.isnan(score)
        ]
        (inverse,) = decollate_batch({**batch, "map": output["anomaly_map"], "brain": (image > 0).float()})
        inverse = invert(inverse)
        voxels = VoxelMetrics()
        voxels.update(inverse["map"], truth, inverse["brain"] > 0.5)
        counted = voxels.compute(threshold=0)
        wanted = ("voxel_auroc", "voxel_average_precision", "lesion_share", "n_voxels", "n_lesion_voxels", "aupro")
        found = {key: counted[key] for key in wanted}
        found |= {"n_slices": len(slices), "n_abnormal_slices": sum(is_lesion for is_lesion, _ in slices)}
        if 0 < found["n_abnormal_slices"] < len(slices):
            is_lesion, values = zip(*slices, strict=True)
            found["slice_auroc"] = float(roc_auc_score(is_lesion, values))
            found["slice_average_precision"] = float(average_precision_score(is_lesion, values))
        report["maps"][name] = found
    return report


def table(reports: dict[str, dict[str, Any]], maps: list[str]) -> str:
    """One row per patient, the maps side by side within a cell."""
    lines = [
        f"Each cell: {' / '.join(maps)}",
        "",
        "| patient | truth | lesion, ml | lesion share | voxel AUROC | voxel AP | slices (with lesion) | slice AUROC |",
        "|---|---|---:|---:|---|---|---:|---|",
    ]
    for patient, report in reports.items():
        found = [report["maps"][name] for name in maps]
        auroc, precision, slices = (
            " / ".join(f"{each[key]:.3f}" if key in each else "-" for each in found)
            for key in ("voxel_auroc", "voxel_average_precision", "slice_auroc")
        )
        first = found[0]
        lines.append(
            f"| {patient} | {report['truth']} | {report['lesion_ml']:.1f} | {first['lesion_share']:.4f} | {auroc} | "
            f"{precision} | {first['n_slices']} ({first['n_abnormal_slices']}) | {slices} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/healthy_t1.yaml")
    parser.add_argument("--min_lesion_mm2", type=float, default=10.0, help="smaller areas are neither with nor without")
    parser.add_argument("--n_healthy", type=int, help="volumes for the mean; all of healthy_t1 if left out")
    parser.add_argument("--patients", nargs="+", choices=PATIENTS, default=list(PATIENTS))
    parser.add_argument("--read_all", action="store_true", help="preprocess every image of both folders first")
    given = parser.parse_args()
    keep_freed_memory()
    print(
        f"seed: none, nothing is drawn; torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}"
    )

    options = {"min_lesion_mm2": given.min_lesion_mm2, "dataset_dir": str(given.data), "device": "cpu"}
    config = parse(given.config, options)
    preprocessing, slicer = config.get_parsed_content("preprocessing"), config.get_parsed_content("slicer")
    report: dict[str, Any] = {"min_lesion_mm2": given.min_lesion_mm2}
    if given.read_all:
        report["read"] = read_all(given.data, preprocessing)
    scorer = config.get_parsed_content("network")
    scorer.load_state_dict(torch.load(given.model, map_location="cpu", weights_only=True)["model"])
    healthy = sorted((given.data / "healthy_t1").glob("*.nii.gz"))[: given.n_healthy]
    mean = mean_volume(slicer, healthy_volumes(healthy, preprocessing))
    print(f"mean of {len(healthy)} healthy volumes: {tuple(mean.shape)} slices, rows, columns", flush=True)
    inferers = {
        "AE-Flow": config.get_parsed_content("inferer"),
        "difference from the mean": DifferenceInferer(mean, slicer, scorer),
        "darkness": MapInferer(dark, slicer, scorer),
    }
    report |= {"n_healthy": len(healthy), "patients": {}}
    for patient in given.patients:
        image, truth, labels = PATIENTS[patient]
        case = {name: str(given.data / path.format(patient)) for name, path in (("image", image), ("mask", truth))}
        report["patients"][patient] = look_at({**case, "case": patient}, labels, config, inferers)
        print(f"{patient}: {report['patients'][patient]['shape']} voxels after preprocessing", flush=True)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "real_lesions.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print("\nWithin each patient; the model and the mean are of healthy people of another data set.\n")
    print(table(report["patients"], list(inferers)))


if __name__ == "__main__":
    main()

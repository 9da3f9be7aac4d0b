"""Real lesions, detected within each patient by a model trained on healthy T1 volumes of other people.

Tumours (brain_mri) and multiple sclerosis (ms_lesion), T1-weighted. All comparisons are within one volume: voxels of
the lesion against those of the same brain outside it, slices with at least --min_lesion_mm2 of lesion against
lesion-free ones of the same brain (with the policy's margin to a lesion). So scanner and preprocessing, which differ
between the data sets, cannot help. AE-Flow is compared with two trivial maps through the same preprocessing, slicing
and inversion: |intensity - mean healthy volume| (brains are only roughly aligned by their centres, not registered), and
1 - intensity inside the brain (T1 lesions are dark). Voxels are evaluated on the file's grid inside the brain, where
the preprocessed intensity is above 0, and in the lesion. Skipped slices have the map value 0.

Ground truths differ: see TRUTHS. That of BraTS-GLI-00001-000 is generous, that of TCGA-DU-7294 is automatic.
With --read_all, every image of both folders goes through the preprocessing first, and any failure is an error. Usage:

    python benchmarks/real_lesions.py --data DIR --model RUN --output DIR [--read_all]

DIR holds brain_mri, ms_lesion and healthy_t1; RUN is the bundle of a training with the preset healthy_t1. Writes
real_lesions.json. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from map_inferer import MapInferer
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.data.utils import affine_to_spacing
from monai.transforms import Invertd
from shared import arguments, machine
from sklearn.metrics import average_precision_score, roc_auc_score
from trivial_baseline import DifferenceMap, TrivialMap, mean_volume

from aeflow_monai import Model, Slicer
from aeflow_monai.engine.inference.allocator import keep_freed_memory
from aeflow_monai.files import write_json
from aeflow_monai.metrics import VoxelMetrics

Look = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
PATIENTS = {  # T1, ground truth, and which of its labels are lesion (all if None)
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


def read_all(data: Path, preprocessing: Any) -> list[dict[str, Any]]:
    """Preprocess every image and mask of both folders; failures are named at the end."""
    found, failed = [], []
    files = [*(data / "brain_mri").rglob("*"), *(data / "ms_lesion").rglob("*")]
    for file in sorted(path for path in files if path.name.endswith((".nii.gz", ".mha"))):
        name = file.relative_to(data).as_posix()
        try:
            image = preprocessing({"image": str(file), "case": name})["image"].as_tensor()
            low, high = float(image.min()), float(image.max())
            if not (torch.isfinite(image).all() and low >= 0 and 0 < high <= 1):
                raise ValueError(f"the range after preprocessing is [{low}, {high}]")
        except Exception as error:  # collect all failures, not only the first
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


def lesions_alone(truth: Path, labels: tuple[int, ...], folder: Path) -> Path:
    """Write a mask of the lesion labels only, since the preprocessing treats all labels as lesion."""
    image = nib.load(truth)
    mask = folder / f"{truth.parent.name}_{truth.name}"
    nib.save(nib.Nifti1Image(np.isin(np.asarray(image.dataobj), labels).astype(np.uint8), image.affine), mask)
    return mask


def look_at(case: dict[str, Any], preprocessing: Any, slicer: Slicer, looks: Mapping[str, Look]) -> dict[str, Any]:
    """Return the metrics of each map for one patient."""
    invert = Invertd(["map", "brain"], preprocessing, "image", nearest_interp=False)
    batch = list_data_collate([preprocessing(case)])
    image = batch["image"]
    (source,) = decollate_batch(batch)
    mask, truth = (source[key] != 0 for key in ("lesion", "original_lesion"))
    lesion = MetaTensor(torch.as_tensor(mask), affine=source["lesion"].affine)
    kinds = slicer.kinds({"image": source["image"], "lesion": lesion}, "axial", case["case"])
    voxel_mm3 = np.prod(affine_to_spacing(source["original_lesion"].affine, r=3).tolist())
    report: dict[str, Any] = {
        "truth": TRUTHS[case["case"]],
        "shape": list(image.shape[2:]),
        "lesion_ml": float(truth.sum() * voxel_mm3 / 1000),
        "maps": {},
    }
    for name, look in looks.items():
        with torch.no_grad():
            output = look(image)
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
        wanted = ("voxel_auroc", "voxel_average_precision", "lesion_fraction", "n_voxels", "n_lesion_voxels", "aupro")
        found = {key: counted[key] for key in wanted}
        found |= {"n_slices": len(slices), "n_abnormal_slices": sum(is_lesion for is_lesion, _ in slices)}
        if 0 < found["n_abnormal_slices"] < len(slices):
            is_lesion, values = zip(*slices, strict=True)
            found["slice_auroc"] = float(roc_auc_score(is_lesion, values))
            found["slice_average_precision"] = float(average_precision_score(is_lesion, values))
        report["maps"][name] = found
    return report


def table(reports: dict[str, dict[str, Any]], maps: list[str]) -> str:
    """Format one row per patient, with the maps side by side within a cell."""
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
            f"| {patient} | {report['truth']} | {report['lesion_ml']:.1f} | {first['lesion_fraction']:.4f} | {auroc} | "
            f"{precision} | {first['n_slices']} ({first['n_abnormal_slices']}) | {slices} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, "data", "model", "output")
    parser.add_argument("--min_lesion_mm2", type=float, default=10.0, help="smaller areas are neither with nor without")
    parser.add_argument("--n_healthy", type=int, help="volumes for the mean; all of healthy_t1 if left out")
    parser.add_argument("--patients", nargs="+", choices=PATIENTS, default=list(PATIENTS))
    parser.add_argument("--read_all", action="store_true", help="preprocess every image of both folders first")
    given = parser.parse_args()
    keep_freed_memory()
    print(f"seed: none, nothing is drawn; {machine()}")

    model = Model(given.model)
    preprocessing, score = model.preprocessing, model.detector.score
    slicer = Slicer(**{**model.inferer.slicer.policy(), "min_lesion_mm2": given.min_lesion_mm2})
    given.output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"min_lesion_mm2": given.min_lesion_mm2}
    if given.read_all:
        report["read"] = read_all(given.data, preprocessing)
    healthy = sorted((given.data / "healthy_t1").glob("*.nii.gz"))[: given.n_healthy]
    mean = mean_volume(slicer, healthy_volumes(healthy, preprocessing))
    print(f"mean of {len(healthy)} healthy volumes: {tuple(mean.shape)} slices, rows, columns", flush=True)
    inferer = MapInferer(slicer)
    looks: dict[str, Look] = {
        "AE-Flow": partial(model.inferer, network=model.detector),
        "difference from the mean": partial(inferer, network=DifferenceMap(mean, score)),
        "darkness": partial(inferer, network=TrivialMap(dark, score)),
    }
    report |= {"n_healthy": len(healthy), "patients": {}}
    for patient in given.patients:
        image, truth, labels = PATIENTS[patient]
        files = {name: str(given.data / path.format(patient)) for name, path in (("image", image), ("lesion", truth))}
        if labels is not None:
            files["lesion"] = str(lesions_alone(Path(files["lesion"]), labels, given.output))
        case = {**files, "case": patient}
        report["patients"][patient] = look_at(case, preprocessing, slicer, looks)
        print(f"{patient}: {report['patients'][patient]['shape']} voxels after preprocessing", flush=True)
    write_json(given.output / "real_lesions.json", report)
    print("\nWithin each patient; the model and the mean are of healthy people of another data set.\n")
    print(table(report["patients"], list(looks)))


if __name__ == "__main__":
    main()

"""A folder of results with tables, reports and pictures, as a run leaves it before its report."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from aeflow_monai.files import write_json
from aeflow_monai.metrics import detection_report
from aeflow_monai.output.report import PictureBlock, PictureBudget
from aeflow_monai.result_files import PEAK_COLUMNS, PLACE_COLUMNS
from aeflow_monai.result_tables import Table

SCRIPT = "<img src=x onerror=alert(1)>"
ELEMENT = "</script><script>alert(2)</script>"
FORMULA = "=cmd|' /C calc'!A0"
LONG = f"sub-0001_ses-01_acq-{'highres' * 9}_desc-preprocessed_run-07_T1w"
MODEL = {
    "thresholds": {"case_threshold": 2.0, "slice_threshold": 2.5, "map_threshold": 3.0},
    "rank": 19,
    "specificity_range": [0.85, 1.0],
    "n_held_out": 19,
    "held_out_scores": [round(0.1 * k, 2) for k in range(19)],
    "joined": "log((exp(map) + exp(2 * t)) / 2) with t = min(term, 1.5) + 0.25 * log(1 + max(term - 1.5, 0) / 0.25)",
}
LOCALISATION = {
    **{"n_abnormal_without_mask": 1, "n_volumes": 59, "n_abnormal_volumes": 3, "n_lesions": 3, "hit_tolerance_mm": 2.0},
    **{"candidate_radius_mm": 5.0, "map_threshold": 3.0, "found_by": "anomaly_mask"},
    **{"lesion_sensitivity": {"0.25": 0.5, "0.5": 0.5, "1": 0.7, "2": 0.7, "4": 1, "8": 1}, "froc_score": 0.73},
    **{"voxel_auroc": 0.97, "voxel_average_precision": 0.4, "lesion_fraction": 0.002, "aupro": 0.9, "dice": 0.42},
    **{"mean_volume_dice": 0.4, "oracle_best_dice": 0.5, "n_slices": 300, "n_abnormal_slices": 20, "slice_auroc": 0.8},
    **{"slice_auroc_ci95": [0.7, 0.9], "slice_average_precision": 0.6, "slice_average_precision_ci95": [0.4, 0.7]},
}


def block(n_slices: int = 6, seed: int = 0) -> PictureBlock:
    """A ball in noise, and a map that is high in its middle."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:n_slices, :48, :40]
    inside = (y - 24) ** 2 / 20**2 + (x - 20) ** 2 / 16**2 < 1
    image = np.where(inside, 120 + rng.normal(0, 15, inside.shape), 0).clip(0, 255).astype(np.uint8)
    distance = (z - n_slices // 2) ** 2 * 9 + (y - 18) ** 2 + (x - 24) ** 2
    lesion = distance < 36
    image[lesion] = 230
    layers = {
        "image": image,
        "reconstruction": np.where(inside, 120, 0).astype(np.uint8),
        "anomaly_map": (230 * np.exp(-distance / 60)).astype(np.uint8),
        "lesion": (255 * lesion).astype(np.uint8),
    }
    numbers = tuple(range(3, 3 + n_slices))
    positions = tuple(float(-10 + 4 * n) for n in numbers) if n_slices > 1 else ()
    scores: list[float | None] = [None, 0.1, *(float(n) for n in layers["anomaly_map"].max(axis=(1, 2)) / 40), None]
    profile: dict[str, Any] = {"scores": scores, "positions_mm": [-10.0 + 4 * n for n in range(1, len(scores) + 1)]}
    # stored from the top
    profile |= {"axis": "k", "slices_from_0": [*reversed(range(len(scores)))], "n_slices": len(scores)}
    return PictureBlock("axial", numbers, positions, n_slices // 2, (96.0, 80.0, 4.0), (0, 240), 6.0, layers, profile)


def write_results(
    folder: Path, n_cases: int = 60, labelled: bool = True, n_slices: int = 6, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Write the tables of a run of so many cases, and give their pictures."""
    rng = np.random.default_rng(seed)
    names = [SCRIPT, ELEMENT, FORMULA, *(f"case_{number:03d}" for number in range(3, n_cases - 1)), LONG]
    labels = [int(number % 3 == 0) for number in range(n_cases)]
    scores = [float(score) for score in rng.normal(0.5, 1, n_cases) + 2 * np.array(labels)]
    label = ["label"] if labelled else []
    told = ["anomaly_score", "threshold", "prediction", "p_value", "n_held_out", *PLACE_COLUMNS, *PEAK_COLUMNS]
    told += ["map_score", "global_term"]
    table = Table(folder / "scores.csv", ["case", "file", *label, *told])
    budget = PictureBudget()
    for number, (name, kind, score) in enumerate(zip(names, labels, scores, strict=True)):
        row = {"case": name, "file": f"/secret/folder/{name}.nii.gz", "anomaly_score": score}
        row |= {"threshold": 2.0, "prediction": int(score > 2), "p_value": 0.25, "n_held_out": 19}
        row |= dict(zip(PLACE_COLUMNS, ("axial", "k", 3, 14.0) if n_slices > 1 else ("",) * 4, strict=True))
        row |= dict(zip(PEAK_COLUMNS, (5, 6, 3, 1.5, -20.0, 14.5) if n_slices > 1 else (5, 6, *("",) * 4), strict=True))
        # a score is the soft maximum of both, of a term that is not bent
        term = min(score / 2 - 0.5, 1.5)
        row |= {"global_term": term, "map_score": math.log(2 * math.exp(score) - math.exp(2 * term))}
        table.append(row | ({"label": kind} if labelled else {}))
        budget.add(name, score, 2.0, block(n_slices, seed=number), kind if labelled else None)
    table.finish()
    if labelled:
        baselines = {"intensity_mean": [*rng.normal(size=n_cases)]}
        write_json(
            folder / "metrics.json",
            detection_report(labels, scores, 2.0, calibrated_rank=(19, 19), n_bootstrap=50, baselines=baselines),
        )
        write_json(folder / "localisation.json", LOCALISATION)
        lesions = Table(folder / "lesions.csv", ["case", "lesion", "n_voxels", "diameter_mm", "map_value", "found"])
        for number, value in enumerate((1.25, 3.5, 9.0)[: -(-n_cases // 3)]):
            row = {"case": names[3 * number], "lesion": 1, "n_voxels": 40, "diameter_mm": 5.0 + number}
            lesions.append(row | {"map_value": value, "found": int(value > 3)})
        lesions.finish()
    failed = Table(folder / "failures.csv", ["case", "file", "stage", "message"])
    failed.append({"case": f"broken {SCRIPT}", "file": "broken.nii.gz", "stage": "read", "message": ELEMENT})
    failed.finish()
    write_json(
        folder / "run.json",
        {
            "started": "2026-11-29T10:00:00+00:00",
            "versions": {"torch": "2.9"},
            "unused": {"files of other kinds": 2, "paths": {}},
        },
    )
    return budget.pictures()

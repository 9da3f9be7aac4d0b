"""Text of the reports on voxels, lesions and slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["format_localisation"]


def format_localisation(report: Mapping[str, Any]) -> str:
    """Format a report as text.

    Args:
        report: The output of `VoxelMetrics.compute`, `LesionMetrics.compute` or `slice_report`, or any of these merged
            by `|`.

    Returns:
        Lines for the console, without a newline at the end.

    Raises:
        ValueError: It is none of these.

    Example:
        >>> from aeflow_monai.metrics import VoxelMetrics
        >>> metrics = VoxelMetrics()
        >>> metrics.update([[0, 0, 0.5], [0, 2, 2]], [[0, 0, 0], [0, 1, 1]])
        >>> print(format_localisation(metrics.compute(threshold=1)))
        volumes                  1 (0 normal, 1 abnormal)
        voxels                   6 (2 in 1 regions)
        voxel AUROC              1.000
        voxel average precision  1.000  (chance: 0.333)
        AUPRO                    1.000  (to FPR 0.3)
        map threshold            1 (stored; larger values are abnormal)
        Dice                     1.000
        mean volume Dice         1.000  (1 abnormal volumes)
        best Dice                1.000  (oracle: chosen on test labels)
        its threshold            2  (oracle: chosen on test labels)
        best mean Dice           1.000  (oracle: chosen on test labels)
        its threshold            2  (oracle: chosen on test labels)
    """
    rows: list[tuple[str, str]] = []
    if "n_volumes" in report:
        n, n_abnormal = report["n_volumes"], report["n_abnormal_volumes"]
        rows.append(("volumes", f"{n} ({n - n_abnormal} normal, {n_abnormal} abnormal)"))
    if "voxel_auroc" in report:
        rows += _voxel_rows(report)
    if "froc_score" in report:
        rows += _lesion_rows(report)
    if "slice_auroc" in report:
        rows += _slice_rows(report)
    if not rows:
        raise ValueError(
            "The report has to come from VoxelMetrics.compute, LesionMetrics.compute or slice_report, got the keys "
            f"{sorted(report)}."
        )
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    if "slice_auroc" in report:
        lines.append(f"Brackets: 95 % bootstrap intervals over cases, {report['slice_n_bootstrap']} resamples.")
    return "\n".join(lines)


def _voxel_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    oracle = "(oracle: chosen on test labels)"
    return [
        ("voxels", f"{report['n_voxels']} ({report['n_lesion_voxels']} in {report['n_regions']} regions)"),
        ("voxel AUROC", f"{report['voxel_auroc']:.3f}"),
        (
            "voxel average precision",
            f"{report['voxel_average_precision']:.3f}  (chance: {report['lesion_fraction']:.3f})",
        ),
        ("AUPRO", f"{report['aupro']:.3f}  (to FPR {report['aupro_fpr_limit']:g})"),
        ("map threshold", f"{report['map_threshold']:.6g} (stored; larger values are abnormal)"),
        ("Dice", f"{report['dice']:.3f}"),
        ("mean volume Dice", f"{report['mean_volume_dice']:.3f}  ({report['n_abnormal_volumes']} abnormal volumes)"),
        ("best Dice", f"{report['oracle_best_dice']:.3f}  {oracle}"),
        ("its threshold", f"{report['oracle_map_threshold']:.6g}  {oracle}"),
        ("best mean Dice", f"{report['oracle_best_mean_volume_dice']:.3f}  {oracle}"),
        ("its threshold", f"{report['oracle_mean_volume_threshold']:.6g}  {oracle}"),
    ]


def _lesion_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("lesions", f"{report['n_lesions']} (hit to {report['hit_tolerance_mm']:g} mm)")]
    for allowed, sensitivity in report["lesion_sensitivity"].items():
        rows.append((f"found at {allowed} FP", f"{sensitivity:.3f}"))
    rows.append(("FROC score", f"{report['froc_score']:.3f}  (mean of these; false positives per volume)"))
    return rows


def _slice_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    n, n_abnormal = report["n_slices"], report["n_abnormal_slices"]
    rows = [("slices", f"{n} ({n_abnormal} abnormal) of {report['n_cases']} cases")]
    for key, name in (("slice_auroc", "slice AUROC"), ("slice_average_precision", "slice average precision")):
        low, high = report[f"{key}_ci95"]
        chance = f"  (chance: {n_abnormal / n:.3f})" if key == "slice_average_precision" else ""
        rows.append((name, f"{report[key]:.3f}  [{low:.3f}, {high:.3f}]{chance}"))
    return rows

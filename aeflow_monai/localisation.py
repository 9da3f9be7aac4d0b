"""How well anomaly maps find lesions: voxel by voxel, lesion by lesion, and slice by slice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.froc import compute_fp_tp_probs_nd, compute_froc_curve_data, compute_froc_score
from scipy import ndimage
from scipy.integrate import trapezoid
from scipy.spatial import cKDTree
from sklearn.metrics import average_precision_score, roc_auc_score

from aeflow_monai.metrics import _finite, _labels, _statistics

__all__ = ["LesionMetrics", "VoxelMetrics", "format_localisation", "slice_report"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint32]
Map = npt.NDArray[np.float32]

# the rates of CAMELYON16, at which MONAI averages too
FALSE_POSITIVES = (0.25, 0.5, 1, 2, 4, 8)


class VoxelMetrics:
    """Voxel AUROC, average precision, AUPRO and Dice of anomaly maps, in memory that does not grow with the volumes.

    Voxels are counted in a histogram whose bins are the leading bits of the float32 value: sign, exponent and the
    first `n_bits` - 9 bits of the mantissa. So no range has to be known, and two values share a bin only if they
    differ by less than the factor 1 + 2^(9 - n_bits), 0.05 % by default. Within a bin the order is unknown; pairs of
    a lesion voxel and another one that share a bin count half. `voxel_auroc_error` bounds what this does to the AUROC:
    near 0 for maps around 0, as `AnomalyScorer` writes them, and large for maps that vary little around a large
    number, from which a constant has to be subtracted first.

    Which voxels count: those of lesions, and those without lesion that lie in the `region` of `update` (all of them if
    it is left out). A map value larger than the threshold is called a lesion (not when equal).

    Memory is 4 arrays of 2^n_bits numbers, 32 MB by default, whatever the number of volumes.

    Args:
        n_bits: Leading bits that tell bins apart, in [9, 24].
        fpr_limit: The false positive rate up to which AUPRO is integrated, in (0, 1].

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> anomaly_map, mask = np.zeros((8, 8, 8)), np.zeros((8, 8, 8))
        >>> mask[2:4, 2:4, 2:4] = 1
        >>> anomaly_map[2:4, 2:4, 2:5] = 3
        >>> metrics = VoxelMetrics()
        >>> metrics.update(anomaly_map, mask)
        >>> report = metrics.compute(threshold=1)
        >>> report["dice"], round(report["voxel_auroc"], 3), report["n_regions"]
        (0.8, 0.996, 1)

    Source: per-region overlap of Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 5.2.
    """

    def __init__(self, n_bits: int = 20, fpr_limit: float = 0.3) -> None:
        if not 9 <= n_bits <= 24:
            raise ValueError(f"n_bits has to be in [9, 24] (memory grows as 32 bytes * 2^n_bits), got {n_bits}.")
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit is a false positive rate and has to be in (0, 1], got {fpr_limit}.")
        self.n_bits = n_bits
        self.fpr_limit = fpr_limit
        self.reset()

    def reset(self) -> None:
        """Forget all volumes."""
        n_bins = 2**self.n_bits
        self._normal: Ints = np.zeros(n_bins, np.int64)
        self._lesion: Ints = np.zeros(n_bins, np.int64)
        # each region with its share of voxels per bin, so that each weighs the same
        self._regions: Floats = np.zeros(n_bins)
        # at each bin, the sum over abnormal volumes of the Dice when this bin and those above are called
        self._dice: Floats = np.zeros(n_bins)
        self._n_volumes = self._n_abnormal = self._n_regions = 0

    def update(self, anomaly_map: Any, mask: Any, region: Any | None = None) -> None:
        """Count the voxels of one volume or image.

        Args:
            anomaly_map: Finite values, larger is more abnormal, shape (H, W[, D]) or (1, H, W[, D]), array or tensor.
                Read as float32.
            mask: Nonzero at lesions, same shape. Its 26-connected components (8-connected in 2D) are the regions of
                AUPRO. All zero for a normal volume.
            region: Nonzero where voxels without lesion count, for example in the brain; same shape. Lesion voxels
                always count. Without it, all voxels count.

        Raises:
            ValueError: Shapes are wrong or differ, the map is not finite, or the mask or region is NaN somewhere.
        """
        values, lesion, counted = _inputs(anomaly_map, mask, region)
        keys = _keys(values, self.n_bits)
        n_bins = 2**self.n_bits
        counts = np.bincount((keys if counted is None else keys[counted | lesion]).ravel(), minlength=n_bins)
        self._n_volumes += 1
        if not lesion.any():
            self._normal += counts
            return
        (box,) = ndimage.find_objects(lesion.view(np.uint8))
        labels, n_regions = _components(lesion[box])
        inside = labels > 0
        labels, lesion_keys = labels[inside], keys[box][inside]
        lesion_counts = np.bincount(lesion_keys, minlength=n_bins)
        self._normal += counts - lesion_counts
        self._lesion += lesion_counts
        self._regions += np.bincount(lesion_keys, weights=1 / np.bincount(labels)[labels], minlength=n_bins)
        self._dice[::-1] += 2 * np.cumsum(lesion_counts[::-1]) / (np.cumsum(counts[::-1]) + len(labels))
        self._n_abnormal += 1
        self._n_regions += n_regions

    def merge(self, other: VoxelMetrics) -> None:
        """Add the volumes of another object, for example from another process; the other stays as it is.

        Args:
            other: With the same `n_bits` and `fpr_limit`.

        Raises:
            ValueError: These differ.
        """
        _same_settings(self, other, ("n_bits", "fpr_limit"))
        self._normal += other._normal
        self._lesion += other._lesion
        self._regions += other._regions
        self._dice += other._dice
        self._n_volumes += other._n_volumes
        self._n_abnormal += other._n_abnormal
        self._n_regions += other._n_regions

    def compute(self, threshold: float) -> dict[str, Any]:
        """Reports all volumes so far, with the threshold that was stored before they were seen.

        The threshold acts to within its bin: values that share it are not called.

        Args:
            threshold: The stored threshold, in the unit of the maps.

        Returns:
            A dictionary that JSON can hold, of plain ints and floats:

            - `n_volumes`, `n_abnormal_volumes`, `n_regions`, `n_voxels`, `n_lesion_voxels`: what was counted.
            - `lesion_share`: lesion voxels among all, which is the average precision of chance.
            - `voxel_auroc`, `voxel_average_precision`: over all voxels of all volumes.
            - `voxel_auroc_error`: bound on the difference between this AUROC and that of the unbinned float32 values;
              true ties cannot be told from shared bins, so they widen it too.
            - `aupro`, `aupro_fpr_limit`: the share of a region that is called, mean over regions of all volumes, as a
              function of the false positive rate, integrated from 0 to the limit and divided by it; in [0, 1].
            - `map_threshold`: the stored one.
            - `dice`: at that threshold, over all voxels of all volumes at once.
            - `mean_volume_dice`: at that threshold, mean over abnormal volumes; normal ones do not enter.
            - `oracle_best_dice`, `oracle_best_mean_volume_dice`: the best of both over all thresholds.
            - `oracle_map_threshold`, `oracle_mean_volume_threshold`: the thresholds that reach them.

            Names with "oracle" are chosen on the test labels: they bound what a threshold could reach, and are no
            result.

        Raises:
            ValueError: The threshold is not finite, no volume has a lesion, or no voxel is without.
        """
        threshold = _finite_threshold(threshold)
        n_lesion, n_normal = int(self._lesion.sum()), int(self._normal.sum())
        _require_lesion(self._n_volumes, self._n_abnormal)
        if not n_normal:
            raise ValueError(
                f"Voxels without lesion are needed, but all {n_lesion} that count are lesions: give maps larger than "
                "their lesions, and a region that is not empty."
            )
        bins = np.flatnonzero(self._normal + self._lesion)[::-1]  # from the most abnormal value down
        hits = np.cumsum(self._lesion[bins], dtype=np.float64)
        false_alarms = np.cumsum(self._normal[bins], dtype=np.float64)
        start = np.zeros(1)
        sensitivity = np.concatenate([start, hits / n_lesion])
        false_rate = np.concatenate([start, false_alarms / n_normal])
        overlap = np.concatenate([start, np.cumsum(self._regions[bins]) / self._n_regions])
        dice = 2 * hits / (hits + false_alarms + n_lesion)
        mean_dice = self._dice[bins] / self._n_abnormal
        n_called = int((bins > int(_keys(np.array([threshold], np.float32), self.n_bits)[0])).sum())
        best, best_mean = int(dice.argmax()), int(mean_dice.argmax())
        return {
            "n_volumes": self._n_volumes,
            "n_abnormal_volumes": self._n_abnormal,
            "n_regions": self._n_regions,
            "n_voxels": n_lesion + n_normal,
            "n_lesion_voxels": n_lesion,
            "lesion_share": n_lesion / (n_lesion + n_normal),
            "voxel_auroc": float(trapezoid(sensitivity, false_rate)),
            "voxel_auroc_error": float(0.5 * (np.diff(sensitivity) @ np.diff(false_rate))),
            "voxel_average_precision": float(np.diff(sensitivity) @ (hits / (hits + false_alarms))),
            "aupro": _area_to(self.fpr_limit, false_rate, overlap),
            "aupro_fpr_limit": float(self.fpr_limit),
            "map_threshold": threshold,
            "dice": float(dice[n_called - 1]) if n_called else 0.0,
            "mean_volume_dice": float(mean_dice[n_called - 1]) if n_called else 0.0,
            "oracle_best_dice": float(dice[best]),
            "oracle_map_threshold": _below(int(bins[best]), self.n_bits),
            "oracle_best_mean_volume_dice": float(mean_dice[best_mean]),
            "oracle_mean_volume_threshold": _below(int(bins[best_mean]), self.n_bits),
        }


class LesionMetrics:
    """Free-response ROC: the share of lesions that an anomaly map points at, against its false alarms per volume.

    A map points at its local maxima: the voxels that no other within `radius_mm` exceeds and that are larger than the
    map's median, at most the `max_candidates` largest of a volume. Adjacent equal maxima (a plateau) are one
    candidate, at their voxel next to their centre. A candidate's confidence is its map value. It hits the lesion next
    to it if that is not farther than `tolerance_mm` between voxel centres, and is a false positive otherwise. Several
    candidates that hit one lesion count once, with the largest confidence. Lesions are the mask's 26-connected
    components (8-connected in 2D). Normal volumes count as volumes, and all their candidates as false positives.

    Memory grows by at most `max_candidates` numbers, and one for each lesion, per volume.

    Args:
        radius_mm: Radius in which a candidate is the largest, in mm; has to reach a voxel's neighbours.
        tolerance_mm: Distance by which lesions are dilated before candidates are looked up, in mm, at least 0.
        max_candidates: Largest number of candidates of a volume, at least 1.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> anomaly_map, mask = np.zeros((20, 20, 20)), np.zeros((20, 20, 20))
        >>> mask[4:7, 4:7, 4:7] = mask[15, 15, 15] = 1
        >>> anomaly_map[5, 5, 5], anomaly_map[5, 15, 5] = 3, 2  # a hit and a false positive; one lesion is missed
        >>> metrics = LesionMetrics()
        >>> metrics.update(anomaly_map, mask, spacing_mm=(1, 1, 1))
        >>> report = metrics.compute()
        >>> report["n_lesions"], report["lesion_sensitivity"]["1"], report["froc_score"]
        (2, 0.5, 0.5)

    Source: `monai.metrics.froc`, after the evaluation of CAMELYON16; candidates are this project's.
    """

    def __init__(self, radius_mm: float = 5.0, tolerance_mm: float = 2.0, max_candidates: int = 50) -> None:
        if not (radius_mm > 0 and math.isfinite(radius_mm)):
            raise ValueError(f"radius_mm has to be positive and finite, got {radius_mm}.")
        if not (tolerance_mm >= 0 and math.isfinite(tolerance_mm)):
            raise ValueError(f"tolerance_mm has to be finite and at least 0, got {tolerance_mm}.")
        if max_candidates < 1:
            raise ValueError(f"max_candidates has to be at least 1, got {max_candidates}.")
        self.radius_mm = radius_mm
        self.tolerance_mm = tolerance_mm
        self.max_candidates = max_candidates
        self.reset()

    def reset(self) -> None:
        """Forget all volumes."""
        self._false: list[Map] = []
        self._found: list[Map] = []
        self._n_volumes = self._n_abnormal = self._n_lesions = self._n_candidates = 0

    def update(self, anomaly_map: Any, mask: Any, spacing_mm: Sequence[float], region: Any | None = None) -> None:
        """Look for the lesions of one volume or image.

        Args:
            anomaly_map: Finite values, larger is more abnormal, shape (H, W[, D]) or (1, H, W[, D]), array or tensor.
                Read as float32.
            mask: Nonzero at lesions, same shape; all zero for a normal volume.
            spacing_mm: Distance of voxel centres along each of H, W[, D], in mm.
            region: Nonzero where candidates may lie, for example in the brain; same shape. The median is the region's
                too. Without it, they may lie anywhere. Lesions outside it still count.

        Raises:
            ValueError: Shapes are wrong or differ, the map is not finite, the mask or region is NaN somewhere, the
                region is empty, or the spacing is wrong.
        """
        values, lesion, inside = _inputs(anomaly_map, mask, region)
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        if spacing.shape != (values.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
            raise ValueError(
                f"spacing_mm has to be {values.ndim} positive numbers, one for each axis of the map of shape "
                f"{values.shape}, got {spacing.tolist()}."
            )
        if inside is not None and not inside.any():
            raise ValueError("region has to be nonzero somewhere, but is empty: leave it out to look everywhere.")
        coords = _candidates(values, inside, spacing, self.radius_mm)[: self.max_candidates]
        lesions, n_lesions = _components(lesion)
        if n_lesions and len(coords):
            # dilated lesions, looked up at the candidates alone
            voxels = np.argwhere(lesion)
            distance, index = cKDTree(voxels * spacing).query(coords * spacing)
            near = distance <= self.tolerance_mm + 1e-6
            lesions[tuple(coords[near].T)] = lesions[tuple(voxels[index[near]].T)]

        # MONAI marks a missed lesion by confidence 0, which maps may fall below: so it gets ranks, counted from 1
        confidence = np.append(values[tuple(coords.T)], np.float32(-np.inf))  # a missed lesion's stands last
        ranks = np.arange(len(coords), 0, -1)
        false_ranks, found_ranks, _ = compute_fp_tp_probs_nd(ranks, coords, lesions)
        self._false.append(confidence[len(coords) - false_ranks.astype(np.int64)])
        self._found.append(confidence[len(coords) - found_ranks.astype(np.int64)])
        self._n_volumes += 1
        self._n_abnormal += int(n_lesions > 0)
        self._n_lesions += n_lesions
        self._n_candidates += len(coords)

    def merge(self, other: LesionMetrics) -> None:
        """Add the volumes of another object, for example from another process; the other stays as it is.

        Args:
            other: With the same settings.

        Raises:
            ValueError: These differ.
        """
        _same_settings(self, other, ("radius_mm", "tolerance_mm", "max_candidates"))
        self._false += other._false
        self._found += other._found
        self._n_volumes += other._n_volumes
        self._n_abnormal += other._n_abnormal
        self._n_lesions += other._n_lesions
        self._n_candidates += other._n_candidates

    def compute(self) -> dict[str, Any]:
        """Reports all volumes so far.

        Returns:
            A dictionary that JSON can hold, of plain ints and floats:

            - `n_volumes`, `n_abnormal_volumes`, `n_lesions`, `n_candidates`: what was counted.
            - `lesion_sensitivity`: the share of lesions found, by false positives per volume: "0.25", "0.5", "1", "2",
              "4", "8". Between the rates that thresholds reach it is interpolated; beyond the last one, where all
              candidates are called, it stays.
            - `froc_score`: mean of these six.
            - `candidate_radius_mm`, `hit_tolerance_mm`, `max_candidates`: the settings.

        Raises:
            ValueError: No volume has a lesion.
        """
        _require_lesion(self._n_volumes, self._n_abnormal)
        # MONAI leaves out the lowest confidence, which it takes for the missed lesions': so there always is one
        false = np.concatenate([*self._false, np.array([-np.inf], np.float32)])
        rate, sensitivity = compute_froc_curve_data(
            false, np.concatenate(self._found), self._n_lesions, self._n_volumes
        )
        return {
            "n_volumes": self._n_volumes,
            "n_abnormal_volumes": self._n_abnormal,
            "n_lesions": self._n_lesions,
            "n_candidates": self._n_candidates,
            "lesion_sensitivity": {
                f"{allowed:g}": float(compute_froc_score(rate, sensitivity, (allowed,))) for allowed in FALSE_POSITIVES
            },
            "froc_score": float(compute_froc_score(rate, sensitivity, FALSE_POSITIVES)),
            "candidate_radius_mm": float(self.radius_mm),
            "hit_tolerance_mm": float(self.tolerance_mm),
            "max_candidates": int(self.max_candidates),
        }


def slice_report(
    labels: Sequence[int] | npt.NDArray[Any],
    scores: Sequence[float] | npt.NDArray[Any],
    cases: Sequence[Any] | npt.NDArray[Any],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Reports how well scores of slices tell those with a lesion from those without.

    Slices of a patient resemble each other, so the 95 % percentile bootstrap draws cases, each with all its slices.
    It is stratified: cases with and without abnormal slices are drawn separately, each with their own number. Draws
    without a normal slice are drawn again.

    Args:
        labels: 0 for slices without lesion and 1 for those with, shape (N,).
        scores: Finite anomaly scores, larger is more abnormal, shape (N,).
        cases: The name or number of the case (patient) that each slice belongs to, shape (N,), at least two.
        n_bootstrap: Number of resamples, at least 1.
        seed: Seed of the resampling.

    Returns:
        A dictionary that JSON can hold: `n_slices`, `n_abnormal_slices`, `n_cases`, `n_abnormal_cases`;
        `slice_auroc`, `slice_average_precision`, each followed by its interval `<name>_ci95` as [low, high];
        `slice_n_bootstrap`, `slice_bootstrap_seed`.

    Raises:
        ValueError: If lengths differ, labels are not 0 or 1, a class is missing, a score is not finite, or all slices
            belong to one case.

    Example:
        >>> report = slice_report([0, 1, 0, 0, 1, 1], [0.1, 0.4, 0.3, 0.2, 0.9, 0.2], cases=list("aabbcc"))
        >>> round(report["slice_auroc"], 3), report["n_cases"], report["n_abnormal_cases"]
        (0.833, 3, 2)
    """
    truth = _labels(labels)
    values = _finite(scores, "scores", len(truth))
    names = np.asarray(cases)
    if names.shape != truth.shape:
        raise ValueError(f"cases have to be of shape ({len(truth)},), one for each label, got {names.shape}.")
    names, case = np.unique(names, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"Slices of at least 2 cases are needed to draw cases, but all {len(truth)} belong to {str(names[0])!r}."
        )
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap has to be at least 1, got {n_bootstrap}.")

    abnormal_slices = np.bincount(case, weights=truth)
    has_normal = np.bincount(case) > abnormal_slices
    strata = [
        stratum for stratum in (np.flatnonzero(abnormal_slices == 0), np.flatnonzero(abnormal_slices)) if len(stratum)
    ]
    distinct, ranks = np.unique(values, return_inverse=True)
    generator = np.random.default_rng(seed)
    samples = np.empty((n_bootstrap, 2))
    for sample in samples:
        drawn = np.zeros(len(names), np.int64)
        while not drawn[has_normal].any():
            chosen = np.concatenate([generator.choice(stratum, len(stratum)) for stratum in strata])
            drawn = np.bincount(chosen, minlength=len(names))
        normal, abnormal = (
            np.bincount(ranks[truth == label], drawn[case[truth == label]], len(distinct)).astype(np.int64)
            for label in (0, 1)
        )
        sample[:] = _statistics(normal, abnormal, 0)[:2]
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return {
        "n_slices": len(truth),
        "n_abnormal_slices": int(truth.sum()),
        "n_cases": len(names),
        "n_abnormal_cases": int((abnormal_slices > 0).sum()),
        "slice_auroc": float(roc_auc_score(truth, values)),
        "slice_auroc_ci95": [float(low[0]), float(high[0])],
        "slice_average_precision": float(average_precision_score(truth, values)),
        "slice_average_precision_ci95": [float(low[1]), float(high[1])],
        "slice_n_bootstrap": n_bootstrap,
        "slice_bootstrap_seed": seed,
    }


def format_localisation(report: Mapping[str, Any]) -> str:
    """Lays a report out as text.

    Args:
        report: What `VoxelMetrics.compute`, `LesionMetrics.compute` or `slice_report` returned, or any of these
            merged by `|`.

    Returns:
        Lines for the console, without a newline at the end.

    Raises:
        ValueError: It is none of these.

    Example:
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
        ("voxel average precision", f"{report['voxel_average_precision']:.3f}  (chance: {report['lesion_share']:.3f})"),
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


def _array(data: Any, name: str) -> npt.NDArray[Any]:
    """An array or tensor as (H, W[, D])."""
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu()
        data = (data.float() if data.is_floating_point() else data).numpy()
    array = np.asarray(data)
    shape = array.shape
    if array.ndim > 2 and shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            f"{name} has to be of shape (H, W), (H, W, D) or the same behind one channel, got {shape}: give one volume "
            "at a time, not a batch."
        )
    return array


def _inputs(anomaly_map: Any, mask: Any, region: Any | None) -> tuple[Map, Bools, Bools | None]:
    """Checked map, lesions and region of equal shape (H, W[, D])."""
    array = _array(anomaly_map, "anomaly_map")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
        values: Map = array.astype(np.float32, copy=False)
    finite = np.isfinite(values)
    if not finite.all():
        first = tuple(int(i) for i in np.unravel_index(int(finite.argmin()), values.shape))
        raise ValueError(
            f"anomaly_map has to be finite in float32, got {int((~finite).sum())} of {values.size} voxels that are NaN "
            f"or infinite, the first ({values[first]}) at {first}: mend the map, or set them to its lowest value."
        )
    return (
        values,
        _boolean(mask, "mask", values.shape),
        None if region is None else _boolean(region, "region", values.shape),
    )


def _boolean(data: Any, name: str, shape: tuple[int, ...]) -> Bools:
    """Where a mask is nonzero."""
    array = _array(data, name)
    if array.shape != shape:
        raise ValueError(
            f"{name} has to be of the anomaly_map's shape {shape}, got {array.shape}: bring both to one geometry first."
        )
    if array.dtype == np.bool_:
        return array
    if np.issubdtype(array.dtype, np.inexact) and np.isnan(array).any():
        raise ValueError(
            f"{name} has to be zero or nonzero everywhere, got {int(np.isnan(array).sum())} voxels that are NaN."
        )
    nonzero: Bools = array != 0
    return nonzero


def _finite_threshold(threshold: float) -> float:
    threshold = float(threshold)
    if not abs(threshold) <= np.finfo(np.float32).max:
        raise ValueError(f"threshold has to be finite, got {threshold}: calibrate the scorer first.")
    return threshold


def _require_lesion(n_volumes: int, n_abnormal: int) -> None:
    if not n_abnormal:
        raise ValueError(
            f"At least one volume with a lesion is needed, but of {n_volumes} volumes so far each mask is empty: "
            "update with the masks of abnormal volumes before compute."
        )


def _same_settings(one: object, other: object, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(one, name) != getattr(other, name):
            raise ValueError(
                f"{name} has to be equal in both to merge them, got {getattr(one, name)} and {getattr(other, name)}."
            )


def _components(lesion: Bools) -> tuple[npt.NDArray[Any], int]:
    """Number of each voxel's component, from 1, and their count; diagonal neighbours are connected."""
    labels, count = ndimage.label(lesion, np.ones((3,) * lesion.ndim))
    return labels, int(count)


def _keys(values: Map, n_bits: int) -> Keys:
    """The bin of each value, in the order of the values."""
    keys: Keys = (values + np.float32(0)).view(np.uint32)  # the sum turns -0 into 0
    # floats order as sign and magnitude: all bits of a negative number are flipped, of others the sign alone
    keys ^= (keys.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)
    keys >>= np.uint32(32 - n_bits)
    return keys


def _below(key: int, n_bits: int) -> float:
    """The largest float32 below a bin: a threshold that calls this bin and those above."""
    bits = (key << (32 - n_bits)) - 1
    bits = bits ^ (1 << 31) if bits >> 31 else ~bits & 0xFFFFFFFF
    # -0 is not below 0, the next number is
    return float(np.array([bits], np.uint32).view(np.float32)[0]) or float(np.nextafter(np.float32(0), np.float32(-1)))


def _area_to(limit: float, x: Floats, y: Floats) -> float:
    """Mean of a piecewise linear curve from 0 to a limit."""
    end = int(np.searchsorted(x, limit, side="right"))
    area = trapezoid(np.append(y[:end], np.interp(limit, x, y)), np.append(x[:end], limit))
    return float(area / limit)


def _candidates(values: Map, inside: Bools | None, spacing: Floats, radius: float) -> Ints:
    """Positions of the local maxima above the median, (n, 2 or 3), the largest first."""
    half = (radius / spacing + 1e-6).astype(np.int64)
    steps = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1).reshape(-1, values.ndim)
    steps = steps[np.linalg.norm(steps * spacing, axis=1) <= radius + 1e-6]
    if len(steps) == 1:
        raise ValueError(
            f"radius_mm has to reach a voxel's neighbours, but {radius} is less than each of spacing_mm "
            f"{spacing.tolist()}: raise radius_mm."
        )
    if inside is None:
        median = np.median(values)
    else:
        median = np.median(values[inside])
        values = np.where(inside, values, np.float32(-np.inf))
    # a ball is slow to filter with, so boxes come first: few voxels are the largest of the box inside the ball, and
    # those that are of the box around it (most of a plateau) need no closer look
    inner = 2 * (radius / math.sqrt(values.ndim) / spacing).astype(np.int64) + 1
    above = values > median
    peaks = above & (values == ndimage.maximum_filter(values, size=tuple(2 * half + 1), mode="nearest"))
    unsure = above & ~peaks & (values == ndimage.maximum_filter(values, size=tuple(inner), mode="nearest"))
    padded = np.ascontiguousarray(np.pad(values, [(h, h) for h in half], constant_values=-np.inf))
    flat, strides = padded.ravel(), np.array(padded.strides) // padded.itemsize
    left = (np.argwhere(unsure) + half) @ strides
    for step in steps @ strides:
        left = left[flat[left + step] <= flat[left]]
    peaks[tuple(np.stack(np.unravel_index(left, padded.shape)) - half[:, None])] = True
    coords = np.argwhere(peaks)

    adjacent = np.zeros((3,) * values.ndim, bool)
    adjacent[tuple(steps[(abs(steps) <= 1).all(1)].T + 1)] = True
    plateau = ndimage.label(peaks, adjacent)[0][tuple(coords.T)]
    size = np.bincount(plateau)
    centre = np.stack([np.bincount(plateau, axis)[plateau] / size[plateau] for axis in coords.T], axis=1)
    order = np.lexsort((np.linalg.norm((coords - centre) * spacing, axis=1), plateau))
    coords = coords[order[np.unique(plateau[order], return_index=True)[1]]]
    return coords[np.argsort(-values[tuple(coords.T)], kind="stable")]

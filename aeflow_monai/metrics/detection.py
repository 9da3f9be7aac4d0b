"""Detection of abnormal cases: metrics of scores and of a stored threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom, mannwhitneyu
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_curve,
    recall_score,
    roc_auc_score,
)

from aeflow_monai.metrics.bootstrap import STATISTICS, bootstrap_intervals

__all__ = ["Floats", "Ints", "detection_report", "expected_passing", "format_report"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_SHIFTED = 0.001  # p-value below which a shift is reported


def detection_report(
    labels: Sequence[int] | npt.NDArray[Any],
    scores: Sequence[float] | npt.NDArray[Any],
    threshold: float,
    *,
    calibrated_rank: tuple[int, int] | None = None,
    calibrated_scores: Sequence[float] = (),
    patients: Sequence[str] = (),
    n_bootstrap: int = 1000,
    seed: int = 0,
    baselines: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Report detection on labelled test cases, with a threshold that was stored before they were seen.

    A case is classified as abnormal if its score is larger than the threshold (not if equal). Intervals are 95 %
    percentile bootstraps over cases, stratified: normal and abnormal cases are resampled separately, with fixed
    numbers, because the fraction of abnormal cases in a test set is a choice of its makers and not a finding. If all
    resamples agree, as for perfectly separated cases, the bootstrap interval would have no width. The Wilson interval
    is used instead, of a fraction of as many cases as the smaller class has, for sensitivity and specificity of their
    own class.

    `oracle_best_f1` is the best F1 over all thresholds, and `oracle_threshold` the threshold that reaches it. Both are
    chosen on the test labels, which are unknown for new cases: they are an upper bound, not a result. `all_abnormal_f1`
    is the F1 of classifying every case as abnormal, 2p / (1 + p) for a fraction p of abnormal cases, without which an
    F1 has no meaning.

    A threshold that is the k-th of the n scores of held-out normals has an expected specificity of k / (n + 1) on
    average. How many of the normal test cases are below it varies by chance in both samples, see `expected_passing`.
    Fewer than that contradict the expected specificity; otherwise it is neither contradicted nor confirmed.
    `specificity_note` reports this with the numbers. It also reports if the normal cases score higher or lower than the
    held-out normals, beyond chance, which the threshold alone may not show if they are few. Only the first case of each
    patient counts, since the cases of one patient are similar.

    Args:
        labels: 0 for normal and 1 for abnormal, shape (N,).
        scores: Finite anomaly scores, larger is more abnormal, shape (N,).
        threshold: The stored threshold, in the unit of the scores.
        calibrated_rank: k and n, if known; see `calibrate`.
        calibrated_scores: Scores of the held-out normals, if known, each of another patient.
        patients: The patient of each case; if empty, each case is of another patient.
        n_bootstrap: Number of resamples, at least 1.
        seed: Seed of the resampling.
        baselines: Trivial statistics by name (mean intensity, file size, ...), shape (N,) each. The AUROC of each is
            given in its better direction, max(auc, 1 - auc), which favours the baseline, since it is a bar to clear.

    Returns:
        A JSON-serialisable dictionary: `n`, `n_normal`, `n_abnormal`; `auroc`, `average_precision`, `threshold`, `f1`,
        `accuracy`, `sensitivity`, `specificity`, each but the threshold followed by its interval `<name>_ci95` as [low,
        high]; `all_abnormal_f1`, `oracle_best_f1`, `oracle_threshold`, `baselines`, `n_bootstrap`, `bootstrap_seed`;
        `auroc_note`, empty if the AUROC is above chance; if the rank is given, `expected_specificity`,
        `expected_passing_range`, `is_specificity_contradicted`, `normal_shift_p` (of a two-sided Mann-Whitney test;
        None without scores), `is_normal_shifted` and `specificity_note`.

    Raises:
        ValueError: If lengths differ, labels are not 0 or 1, a class is missing, or a number is not finite.

    Example:
        >>> report = detection_report([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9], threshold=0.35)
        >>> report["auroc"], report["sensitivity"], report["specificity"]
        (0.75, 0.5, 0.5)
    """
    truth = _labels(labels)
    values = _finite(scores, "scores", len(truth))
    threshold = float(threshold)
    if not np.isfinite(threshold):
        raise ValueError(f"threshold has to be finite, got {threshold}.")
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap has to be at least 1, got {n_bootstrap}.")

    called = values > threshold
    point = {
        "auroc": roc_auc_score(truth, values),
        "average_precision": average_precision_score(truth, values),
        "threshold": threshold,
        "f1": f1_score(truth, called, zero_division=0.0),
        "accuracy": accuracy_score(truth, called),
        "sensitivity": recall_score(truth, called),
        "specificity": recall_score(truth, called, pos_label=0),
    }
    intervals = bootstrap_intervals(truth, values, threshold, n_bootstrap, np.random.default_rng(seed))
    n_abnormal = int(truth.sum())
    report: dict[str, Any] = {"n": len(truth), "n_normal": len(truth) - n_abnormal, "n_abnormal": n_abnormal}
    for name, value in point.items():
        report[name] = float(value)
        if name in intervals:
            report[f"{name}_ci95"] = intervals[name]

    report["auroc_note"] = _auroc_note(report)
    report["all_abnormal_f1"] = float(f1_score(truth, np.ones_like(truth)))
    report["oracle_best_f1"], report["oracle_threshold"] = _oracle(truth, values)
    report["baselines"] = {}
    for name, statistic in (baselines or {}).items():
        auroc = float(roc_auc_score(truth, _finite(statistic, f"baseline '{name}'", len(truth))))
        report["baselines"][name] = max(auroc, 1 - auroc)
    if calibrated_rank is not None:
        rank, n_calibrated = calibrated_rank
        passed = int((~called[truth == 0]).sum())
        low, high = expected_passing(report["n_normal"], calibrated_rank)
        report["expected_specificity"] = rank / (n_calibrated + 1)
        report["expected_passing_range"] = [low, high]
        report["is_specificity_contradicted"] = passed < low
        normal = values[truth == 0]
        if len(patients):
            normal = normal[np.unique(np.asarray(patients)[truth == 0], return_index=True)[1]]
        p, is_higher = _shift(normal, calibrated_scores)
        report |= {"normal_shift_p": p, "is_normal_shifted": p is not None and p < _SHIFTED}
        report["specificity_note"] = _specificity_note(report, passed, is_higher)
    return report | {"n_bootstrap": n_bootstrap, "bootstrap_seed": seed}


def expected_passing(n_normal: int, calibrated_rank: tuple[int, int]) -> tuple[int, int]:
    """Return the range of normal cases at or below a threshold, if they are like those that it was set on.

    Args:
        n_normal: number of normal cases.
        calibrated_rank: rank of the threshold among the scores of the calibration's normals, counted from 1, and the
            number of those normals.

    Returns:
        The least and the most in 95 of 100 draws; the number above an order statistic has a beta-binomial distribution.

    Example:
        >>> expected_passing(100, (95, 99)), expected_passing(20, (6, 6))
        ((88, 100), (10, 20))
    """
    rank, n_calibrated = calibrated_rank
    above = betabinom(n_normal, n_calibrated + 1 - rank, rank)
    return n_normal - int(above.ppf(0.975)), n_normal - int(above.ppf(0.025))


def _auroc_note(report: Mapping[str, Any]) -> str:
    """Explain an AUROC that is not above chance."""
    low, high = report["auroc_ci95"]
    if high < 0.5:
        return (
            "Abnormal cases score lower than normal ones, beyond chance. Check the labels and which class is normal. "
            "Or the normal cases differ from those of the training (site, scanner, patients, preparation): calibrate "
            "the model on normals like these."
        )
    if low <= 0.5:
        return "The interval of the AUROC includes 0.5: these cases do not show that the score does better than chance."
    return ""


def _shift(normal: Floats, calibrated: Sequence[float]) -> tuple[float | None, bool]:
    """Return the p-value of a shift between normal cases and held-out normals, and whether they score higher."""
    if not len(calibrated):
        return None, False
    test = mannwhitneyu(normal, np.asarray(calibrated, dtype=np.float64))
    return float(test.pvalue), bool(test.statistic > len(normal) * len(calibrated) / 2)


def _specificity_note(report: Mapping[str, Any], passed: int, is_higher: bool) -> str:
    """Report how the normal cases agree with the expected specificity, in numbers."""
    (low, high), (least, most), n = report["specificity_ci95"], report["expected_passing_range"], report["n_normal"]
    measured = (
        f"{passed} of {n} normal cases passed: a specificity of {report['specificity']:.3f} (95 % interval {low:.3f} "
        f"to {high:.3f}), where {report['expected_specificity']:.3f} was expected."
    )
    draws = f"Of {n} normal cases like those that the threshold was set on, {least} to {most} pass in 95 of 100 draws"
    if report["is_specificity_contradicted"]:
        return (
            f"{measured} {draws}. These most likely differ from them (site, scanner, patients, preparation): calibrate "
            "the model on normals like these."
        )
    if report["is_normal_shifted"]:
        return (
            f"{measured} {draws}. But these score {'higher' if is_higher else 'lower'} than those, beyond chance "
            f"(Mann-Whitney test, p = {report['normal_shift_p']:.1g}): they most likely differ (site, scanner, "
            "patients, preparation), and the threshold does not fit. Calibrate the model on normals like these."
        )
    return f"{measured} {draws}: this neither contradicts nor confirms what was expected."


def format_report(report: Mapping[str, Any]) -> str:
    """Format a report as text.

    Args:
        report: The output of `detection_report`.

    Returns:
        Lines for the console, without a newline at the end.

    Example:
        >>> print(format_report(detection_report([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9], threshold=0.25)))
        cases              4 (2 normal, 2 abnormal)
        AUROC              1.000  [0.342, 1.000]
        average precision  1.000  [0.342, 1.000]
        threshold          0.25 (stored; larger scores are abnormal)
        F1                 1.000  [0.342, 1.000]  (all called abnormal: 0.667)
        accuracy           1.000  [0.510, 1.000]
        sensitivity        1.000  [0.342, 1.000]
        specificity        1.000  [0.342, 1.000]
        best F1            1.000  (oracle: chosen on test labels)
        its threshold      0.3  (oracle: chosen on test labels)
        Brackets: 95 % bootstrap intervals, 1000 resamples.
        The interval of the AUROC includes 0.5: these cases do not show that the score does better than chance.
    """
    rows = [("cases", f"{report['n']} ({report['n_normal']} normal, {report['n_abnormal']} abnormal)")]
    for name in STATISTICS:
        if name == "f1":
            rows.append(("threshold", f"{report['threshold']:.6g} (stored; larger scores are abnormal)"))
        low, high = report[f"{name}_ci95"]
        text = f"{report[name]:.3f}  [{low:.3f}, {high:.3f}]"
        if name == "f1":
            text += f"  (all called abnormal: {report['all_abnormal_f1']:.3f})"
        if name == "specificity" and "expected_specificity" in report:
            text += f"  (expected: {report['expected_specificity']:.3f})"
        rows.append((name.upper() if name in ("auroc", "f1") else name.replace("_", " "), text))
    oracle = "(oracle: chosen on test labels)"
    rows.append(("best F1", f"{report['oracle_best_f1']:.3f}  {oracle}"))
    rows.append(("its threshold", f"{report['oracle_threshold']:.6g}  {oracle}"))
    for name, auroc in report["baselines"].items():
        rows.append((name, f"{auroc:.3f}  (AUROC of a trivial baseline, better direction)"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    lines.append(f"Brackets: 95 % bootstrap intervals, {report['n_bootstrap']} resamples.")
    return "\n".join([*lines, *filter(None, map(report.get, ("auroc_note", "specificity_note")))])


def _labels(labels: Any) -> Ints:
    array = np.asarray(labels)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"labels have to be of shape (N,) with N > 0, got {array.shape}.")
    wrong = np.flatnonzero(~np.isin(array, (0, 1)))
    if wrong.size:
        raise ValueError(f"labels have to be 0 (normal) or 1 (abnormal), got {array[wrong[0]]!r} at index {wrong[0]}.")
    truth: Ints = array.astype(np.int64)
    for label, name in enumerate(("normal", "abnormal")):
        if label not in truth:
            raise ValueError(
                f"labels have to hold both classes, but none of {len(truth)} cases is {name} ({label}): give "
                "a labelled test set with normal and abnormal cases."
            )
    return truth


def _finite(numbers: Any, name: str, length: int) -> Floats:
    array: Floats = np.asarray(numbers, dtype=np.float64)
    if array.shape != (length,):
        raise ValueError(f"{name} have to be of shape ({length},), one for each label, got {array.shape}.")
    wrong = np.flatnonzero(~np.isfinite(array))
    if wrong.size:
        raise ValueError(
            f"{name} have to be finite, got {wrong.size} of {length} that are NaN or infinite, the first "
            f"({array[wrong[0]]}) at index {wrong[0]}."
        )
    return array


def _oracle(truth: Ints, values: Floats) -> tuple[float, float]:
    """Return the best F1, and the threshold that reaches it if only larger scores are abnormal."""
    precision, recall, thresholds = precision_recall_curve(truth, values)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)[:-1]
    best = int(f1.argmax())
    # for scikit-learn a score equal to the threshold is abnormal; here it is normal
    return float(f1[best]), float(np.nextafter(thresholds[best], -np.inf))

"""Statistics of scores, and their bootstrap intervals over cases."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

__all__ = ["STATISTICS", "bootstrap_intervals"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STATISTICS = ("auroc", "average_precision", "f1", "accuracy", "sensitivity", "specificity")


def bootstrap_intervals(
    truth: Ints, values: Floats, threshold: float, n_bootstrap: int, generator: np.random.Generator
) -> dict[str, list[float]]:
    """Compute 95 % percentile intervals of `STATISTICS`; resampling only changes the count of each distinct score."""
    distinct, ranks = np.unique(values, return_inverse=True)
    first_called = int(np.searchsorted(distinct, threshold, side="right"))
    normal, abnormal = ranks[truth == 0], ranks[truth == 1]
    samples = np.empty((n_bootstrap, len(STATISTICS)))
    for sample in samples:
        drawn = [generator.choice(group, len(group)) for group in (normal, abnormal)]
        counts = [np.bincount(ranks_drawn, minlength=len(distinct)) for ranks_drawn in drawn]
        sample[:] = _statistics(counts[0], counts[1], first_called)
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    smaller = min(len(normal), len(abnormal))
    own = {"sensitivity": len(abnormal), "specificity": len(normal), "accuracy": len(values)}
    return {
        name: [float(low[i]), float(high[i])] if low[i] < high[i] else _wilson(float(low[i]), own.get(name, smaller))
        for i, name in enumerate(STATISTICS)
    }


def _wilson(fraction: float, n: int) -> list[float]:
    """Compute the 95 % Wilson interval of a fraction of n cases."""
    interval = binomtest(round(fraction * n), n).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def _statistics(normal: Ints, abnormal: Ints, first_called: int) -> tuple[float, ...]:
    """Compute `STATISTICS` from the counts of each distinct score, in ascending order of the scores."""
    n_normal, n_abnormal = normal.sum(), abnormal.sum()
    # AUROC: the fraction of pairs in which the abnormal score is larger, ties counting half.
    auroc = abnormal @ (np.cumsum(normal) - 0.5 * normal) / (n_normal * n_abnormal)
    true_positives = np.cumsum(abnormal[::-1])
    positives = true_positives + np.cumsum(normal[::-1])
    average_precision = abnormal[::-1] @ (true_positives / np.maximum(positives, 1)) / n_abnormal

    hits, false_alarms = abnormal[first_called:].sum(), normal[first_called:].sum()
    f1 = 2 * hits / (hits + false_alarms + n_abnormal)
    accuracy = (hits + n_normal - false_alarms) / (n_normal + n_abnormal)
    return auroc, average_precision, f1, accuracy, hits / n_abnormal, 1 - false_alarms / n_normal

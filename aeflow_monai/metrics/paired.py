"""Comparison of two models on the same labelled cases: difference, interval and p-value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

__all__ = ["paired_report"]

Floats = npt.NDArray[np.float64]


def paired_report(
    labels: Sequence[int],
    first: Sequence[float],
    second: Sequence[float],
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the AUROC of two models, case by case.

    The interval is a 95 % percentile bootstrap over cases of the difference, with the same resample for both models;
    normal and abnormal cases are resampled separately. The p-value is two-sided: twice the fraction of resamples in
    which the difference has the opposite sign, zero counting half, with one added resample so that it is never 0.

    Args:
        labels: 0 for normal and 1 for abnormal, shape (N,).
        first: anomaly scores of the first model, larger is more abnormal, shape (N,).
        second: anomaly scores of the second model, of the same cases in the same order.
        n_bootstrap: number of resamples, at least 1.
        seed: seed of the resampling.

    Returns:
        "n", "n_normal", "n_abnormal", "auroc" of both as a list, "difference" (second minus first), its
        "difference_ci95", "p_value", "n_bootstrap" and "bootstrap_seed".

    Raises:
        ValueError: the lengths differ, a class is missing, or n_bootstrap is below 1.

    Example:
        >>> report = paired_report([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9], [0.1, 0.2, 0.3, 0.9])
        >>> report["auroc"], report["difference"]
        ([0.75, 1.0], 0.25)
    """
    truth = np.asarray(labels, dtype=np.int64)
    scores = np.asarray([first, second], dtype=np.float64)
    if scores.shape != (2, len(truth)) or set(truth.tolist()) != {0, 1}:
        raise ValueError(
            f"Expected scores of two models for the same normal and abnormal cases; got {len(truth)} labels, of the "
            f"kinds {sorted(set(truth.tolist()))}, and scores of the shape {scores.shape}."
        )
    if n_bootstrap < 1:
        raise ValueError(f"Expected at least one resample; got n_bootstrap={n_bootstrap}.")
    groups = [scores[:, truth == label] for label in (0, 1)]
    auroc = [float(roc_auc_score(truth, of_model)) for of_model in scores]  # as an evaluation has it
    generator = np.random.default_rng(seed)
    differences = np.empty(n_bootstrap)
    for number in range(n_bootstrap):
        drawn = [group[:, generator.integers(group.shape[1], size=group.shape[1])] for group in groups]
        differences[number] = np.diff(_aurocs(*drawn))[0]
    n_below = np.sum(differences < 0) + 0.5 * np.sum(differences == 0)
    other_sign = (min(n_below, n_bootstrap - n_below) + 1) / (n_bootstrap + 1)
    low, high = np.percentile(differences, [2.5, 97.5])
    return {
        "n": len(truth),
        "n_normal": groups[0].shape[1],
        "n_abnormal": groups[1].shape[1],
        "auroc": auroc,
        "difference": auroc[1] - auroc[0],
        "difference_ci95": [float(low), float(high)],
        "p_value": float(min(1.0, 2 * other_sign)),
        "n_bootstrap": n_bootstrap,
        "bootstrap_seed": seed,
    }


def _aurocs(normal: Floats, abnormal: Floats) -> list[float]:
    """Compute the AUROC of each model: the fraction of pairs with the abnormal score larger, ties counting half."""
    found = []
    for of_normal, of_abnormal in zip(normal, abnormal, strict=True):
        ordered = np.sort(of_normal)
        below, up_to = (np.searchsorted(ordered, of_abnormal, side) for side in ("left", "right"))
        found.append(float((below + up_to).mean() / (2 * len(ordered))))
    return found

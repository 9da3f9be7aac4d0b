"""Two models on the same labelled cases: what they differ by, and whether chance could do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

__all__ = ["paired_report"]


def paired_report(
    labels: Sequence[int],
    first: Sequence[float],
    second: Sequence[float],
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the AUROC of two models, case by case.

    The interval is a 95 % percentile bootstrap over cases, of the difference on the same resample for both; normal and
    abnormal cases are drawn separately. The p-value is two-sided: twice the share of resamples in which the difference
    has the other sign, zero counting half.

    Args:
        labels: 0 for normal and 1 for abnormal, shape (N,).
        first: anomaly scores of the first model, larger is more abnormal, shape (N,).
        second: of the second model, of the same cases in the same order.
        n_bootstrap: resamples, at least 1.
        seed: of the resampling.

    Returns:
        "n", "n_normal", "n_abnormal", "auroc" of both as a list, "difference" (second less first), its
        "difference_ci95", "p_value", "n_bootstrap" and "bootstrap_seed".

    Raises:
        ValueError: the lengths differ, or a class is missing.

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
    groups = [np.flatnonzero(truth == label) for label in (0, 1)]
    generator = np.random.default_rng(seed)
    differences = np.empty(n_bootstrap)
    for number in range(n_bootstrap):
        drawn = np.concatenate([generator.choice(group, len(group)) for group in groups])
        differences[number] = _auroc(truth[drawn], scores[1, drawn]) - _auroc(truth[drawn], scores[0, drawn])
    auroc = [_auroc(truth, of_model) for of_model in scores]
    other_sign = np.mean(differences < 0) + 0.5 * np.mean(differences == 0)
    low, high = np.percentile(differences, [2.5, 97.5])
    return {
        "n": len(truth),
        "n_normal": len(groups[0]),
        "n_abnormal": len(groups[1]),
        "auroc": auroc,
        "difference": auroc[1] - auroc[0],
        "difference_ci95": [float(low), float(high)],
        "p_value": float(min(1.0, 2 * min(other_sign, 1 - other_sign))),
        "n_bootstrap": n_bootstrap,
        "bootstrap_seed": seed,
    }


def _auroc(truth: Any, scores: Any) -> float:
    return float(roc_auc_score(truth, scores))

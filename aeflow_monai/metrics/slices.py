"""Detection of slices with a lesion by their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from aeflow_monai.metrics.bootstrap import _statistics
from aeflow_monai.metrics.detection import _finite, _labels

__all__ = ["slice_report"]


def slice_report(
    labels: Sequence[int] | npt.NDArray[Any],
    scores: Sequence[float] | npt.NDArray[Any],
    cases: Sequence[Any] | npt.NDArray[Any],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Report how well scores of slices separate those with a lesion from those without.

    Slices of a patient are similar, so the 95 % percentile bootstrap resamples cases, each with all its slices. It is
    stratified: cases with and without abnormal slices are resampled separately, with fixed numbers. Resamples without a
    normal slice are drawn again.

    Args:
        labels: 0 for slices without lesion and 1 for those with, shape (N,).
        scores: Finite anomaly scores, larger is more abnormal, shape (N,).
        cases: The name or number of the case (patient) that each slice belongs to, shape (N,), at least two.
        n_bootstrap: Number of resamples, at least 1.
        seed: Seed of the resampling.

    Returns:
        A JSON-serialisable dictionary: `n_slices`, `n_abnormal_slices`, `n_cases`, `n_abnormal_cases`; `slice_auroc`,
        `slice_average_precision`, each followed by its interval `<name>_ci95` as [low, high]; `slice_n_bootstrap`,
        `slice_bootstrap_seed`.

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

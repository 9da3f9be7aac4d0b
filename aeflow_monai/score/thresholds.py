"""Thresholds from the scores of held-out normals, and their expected specificity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import betaincinv  # scipy.stats takes much longer to import
from torch import Tensor

from aeflow_monai.score.held_out import rounding_of
from aeflow_monai.score.score import Score

__all__ = [
    "is_specificity_uncertain",
    "patients_needed",
    "require_specificity",
    "set_thresholds",
    "specificity_range",
    "threshold_rank",
    "upper_threshold",
]

_OFF = 0.05  # of the expected specificity: a smaller deviation is not reported


def require_specificity(specificity: float) -> None:
    """Raise an error if a specificity is out of range, before anything is computed with it.

    Raises:
        ValueError: it is not in (0, 1).
    """
    if not 0 < specificity < 1:
        raise ValueError(f"specificity has to be in (0, 1), as 0.95; got {specificity}.")


def upper_threshold(scores: Sequence[float] | Tensor, specificity: float) -> float:
    """Return the threshold that a new normal exceeds with a probability of at most 1 - specificity.

    The k-th smallest of n held-out scores with k = ceil((n + 1) * specificity) guarantees this for any distribution, if
    new normals come from the same one (split conformal prediction). With fewer than specificity / (1 - specificity)
    scores no such k exists, and the largest score is returned.

    Args:
        scores: scores of held-out normals, any unit.
        specificity: in (0, 1).

    Returns:
        The threshold, in the scores' unit.

    Raises:
        ValueError: no scores, or a specificity out of range.

    Example:
        >>> upper_threshold(list(range(1, 100)), specificity=0.95)
        95.0

    Source: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005.
    """
    require_specificity(specificity)
    ordered = sorted(float(score) for score in scores)
    if not ordered:
        raise ValueError("A threshold needs the scores of held-out normals; got none.")
    return ordered[threshold_rank(len(ordered), specificity) - 1]


def threshold_rank(n: int, specificity: float) -> int:
    """Return the rank k, from 1, of `upper_threshold` among n scores: on average k / (n + 1) of new normals pass.

    Example:
        >>> threshold_rank(99, 0.95), threshold_rank(4, 0.95)
        (95, 4)
    """
    return min(math.ceil((n + 1) * specificity), n)


def patients_needed(specificity: float) -> int:
    """Return the number of held-out patients from which on a threshold can keep this specificity.

    Example:
        >>> patients_needed(0.95)
        19
    """
    return math.ceil(specificity / (1 - specificity) - 1e-9)


def specificity_range(rank: int, n: int) -> tuple[float, float]:
    """Return the 90 % range of the specificity on new normals over draws of the held-out ones.

    Its mean over draws is k / (n + 1). A single draw of few may by chance have scores that are too high or too low: the
    fraction of new normals below the k-th smallest of n scores has the distribution Beta(k, n + 1 - k).

    Args:
        rank: rank k of the threshold among the scores, from 1.
        n: number of scores, one per patient.

    Returns:
        The 5th and the 95th percentile.

    Example:
        >>> low, high = specificity_range(8, 8)
        >>> round(low, 2), round(high, 2)
        (0.69, 0.99)

    Source: Vovk, "Conditional validity of inductive conformal predictors", 2012.
    """
    low, high = betaincinv(rank, n + 1 - rank, [0.05, 0.95]).tolist()
    return low, high


def is_specificity_uncertain(rank: int, n: int) -> bool:
    """Return whether the specificity may be more than 5 points off the expected one, see `specificity_range`.

    Example:
        >>> is_specificity_uncertain(8, 8), is_specificity_uncertain(191, 200)
        (True, False)
    """
    return max(abs(limit - rank / (n + 1)) for limit in specificity_range(rank, n)) > _OFF


def set_thresholds(
    score: Score,
    cases: Sequence[float],
    slices: Sequence[float] | Tensor,
    peaks: Sequence[float],
    patients: Sequence[str],
    specificity: float,
) -> None:
    """Set the score's thresholds, the expected specificity of the case threshold, and the scores for p-values.

    Thresholds lie above the `upper_threshold` by `rounding_of` it, so that a held-out normal whose score is the
    threshold does not exceed it when it is scored again.

    Args:
        score: the score whose buffers are filled.
        cases: scores of held-out normal cases.
        slices: scores of their slices.
        peaks: highest map value of each slice.
        patients: the patient of each case. Images of one patient are similar, so they count as one. (The threshold is
            that of cases, so the expected specificity is approximate if patients have several.)
        specificity: see `upper_threshold`.
    """
    for threshold, scores in (
        (score.case_threshold, cases),
        (score.slice_threshold, slices),
        (score.map_threshold, peaks),
    ):
        upper = upper_threshold(scores, specificity)
        threshold.fill_(upper + rounding_of(upper))
    n_patients = len(set(patients))
    score.case_rank.copy_(torch.tensor([threshold_rank(n_patients, specificity), n_patients]))
    score.held_out.keep(cases, patients)

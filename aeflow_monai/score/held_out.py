"""Scores of held-out normal cases, and the p-value of another case's score among them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["HeldOutScores", "rounding_of"]

# Relative to a score, or to a standard deviation. On the synthetic volumes another batch size or runtime changed case
# scores and map peaks by up to 4e-6, and scores of single slices by up to 2e-5; the tests of the runtimes allow 1e-4.
_ROUNDING = 1e-5


class HeldOutScores(nn.Module):
    """Scores of held-out normal cases; there are none before `keep`.

    The buffers `scores` and `weights` hold the scores, ascending, and their weights: the cases of one patient are
    similar, so together they count as one.

    Example:
        >>> held_out = HeldOutScores()
        >>> held_out.keep([1.0, 2.0, 3.0], ["a", "b", "c"])
        >>> held_out.n, held_out.p_value(2.5)
        (3, 0.5)
    """

    scores: Tensor
    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scores", torch.zeros(0))
        self.register_buffer("weights", torch.zeros(0))

    @property
    def n(self) -> int:
        """Return the number of patients."""
        return round(float(self.weights.double().sum()))

    def keep(self, scores: Sequence[float], patients: Sequence[str]) -> None:
        """Store scores, replacing earlier ones.

        Args:
            scores: scores of held-out normal cases, in any order.
            patients: the patient of each case.
        """
        n_cases = Counter(patients)
        ordered = sorted(zip(scores, patients, strict=True))
        self.scores = self.scores.new_tensor([score for score, _ in ordered])
        self.weights = self.weights.new_tensor([1 / n_cases[patient] for _, patient in ordered])

    def p_value(self, score: float) -> float:
        """Compute the probability that a new normal case has a score this high or higher.

        It is (1 + held-out cases with a score at or above) / (1 + held-out cases), where scores that differ only by
        rounding are equal. If new normals come from the same distribution, whichever it is, at most a fraction alpha of
        them has a p-value of alpha or less.

        Args:
            score: the score of a case.

        Returns:
            A probability in [1 / (n + 1), 1]; NaN if there are no scores.

        Source: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005.
        """
        if not len(self.scores):
            return math.nan
        weights = self.weights.double()
        at_or_above = self.scores.double() >= score - rounding_of(score)
        return float((1 + weights[at_or_above].sum()) / (1 + weights.sum()))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take the number of cases from the state."""
        for name in ("scores", "weights"):
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, getattr(self, name).new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def rounding_of(score: float) -> float:
    """Return by how much the score of a case may differ when the same image is scored again, in float32.

    Args:
        score: the score, in standard deviations of held-out normals.

    Example:
        >>> rounding_of(0.3), rounding_of(-20.0)
        (1e-05, 0.0002)
    """
    return _ROUNDING * max(1.0, abs(score))

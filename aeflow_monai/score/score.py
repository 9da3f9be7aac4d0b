"""Definition of the score: terms -> calibrated anomaly map -> slice score -> case score.

It is independent of the network: any method that computes maps of slices can be scored by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aeflow_monai.geometry import Places
from aeflow_monai.score.global_term import GlobalTerm
from aeflow_monai.score.held_out import HeldOutScores
from aeflow_monai.score.position import PositionNorm, blur_through_slices
from aeflow_monai.score.stack import SliceStack
from aeflow_monai.score.tissue import is_tissue, mean_in_foreground
from aeflow_monai.score.top_fractions import top_mean, top_means

__all__ = ["EASE_MARGIN", "Score", "SliceScores"]

# Fractions of a slice's highest map values, and of a case's highest slice scores. In a volume a lesion is a small part
# of a slice, and in few slices. Chosen on the panel's development splits, see docs/results_choices.md.
_OF_IMAGES, _OF_VOLUMES = ((0.05, 1.0), 0.25), ((0.005, 1.0), 0.15)
EASE_MARGIN = 1.5  # slices at most this much easier to reconstruct than the mean are normal; a choice


class SliceScores(NamedTuple):
    """Anomaly maps and scores of slices.

    Attributes:
        anomaly_map: (n, 1, H, W).
        slice_scores: (n,).
        ease: how much easier to reconstruct each slice is than normals, (n,); see `Score.ease`.
        map_scores: the slice scores without the global terms, (n,).
        global_terms: how unusual each slice is as a whole, (n,); see `Score.global_terms`.
    """

    anomaly_map: Tensor
    slice_scores: Tensor
    ease: Tensor
    map_scores: Tensor
    global_terms: Tensor


class Score(nn.Module):
    """Compute a calibrated anomaly map and scores from the terms of slices.

    The anomaly map is a weighted sum of terms, each at image size and standardised by its mean and standard deviation
    on held-out normals. The last term is that of the reconstruction, 1 - SSIM; the others are those of the flow, one
    per encoder stage. A single term can be the map of any other method::

        sum = (beta * mean of standardised(flow terms) + (1 - beta) * standardised(1 - SSIM)) / map_std
        deviation = (sum, blurred through the slices of a volume - mean of normals at the same place) / their deviation
        map = deviation - (1 - level_weight) * mean of deviation over the slice's foreground

    Outside the tissue, where there is only black between a pixel and the border, the map is at most 0.

    A map value of 0 is typical of normals at this place; larger is more anomalous, in standard deviations of normals
    there. For each of `top_fractions` the mean of this fraction of a slice's highest map values is standardised by that
    of held-out normal slices; the slice score is the mean over the fractions. So it rises with a small lesion, and with
    a faint change of the whole slice. A slice that is easier to reconstruct than normals, such as a blurred one, is
    abnormal too: its `ease` beyond 1.5 standard deviations, times `ease_weight`, is added. A change of the whole slice
    may change no place by much: the `GlobalTerm` of its pooled features is joined to the score by a soft maximum,
    softness log((e^(score / softness) + e^(weight term / softness)) / 2), see there. For a volume with several planes,
    a slice is scored by the mean of the planes' maps, if it was calibrated so (`of_mean_map`). The score of a case is
    the mean of its highest slice scores without the global term, joined in the same way to the mean of the global
    terms: a change of the whole case changes most slices.

    Nothing depends on the other images of a batch. Means, standard deviations and thresholds are buffers, so they are
    part of the checkpoint. Until `calibrate_score` has filled them, maps and scores have no unit and thresholds are
    infinite.

    Args:
        n_terms: number of terms: one for each encoder stage, and the reconstruction; 1 for a single map.
        beta: weight of the flow terms, in [0, 1]; a single term has the weight 1.
        published: compute the published score in log space, beta * (-log N(z'; 0, I)) + (1 - beta) * (-SSIM): neither
            maps nor slice scores are standardised, blurred or compared by position.
        top_fractions: fractions of a slice's highest map values, each in (0, 1]; 1 takes the mean of the whole slice.
            If None, 0.005 and 1 if calibrated on volumes, else 0.05 and 1; 0.05 and 1 for the published score as well.
        case_top_fraction: fraction of a case's highest slice scores whose mean is its score, in (0, 1]. If None, 0.15
            if calibrated on volumes, else 0.25.
        position_normalisation: compare each place of the map with the same place of normals, if this predicts held-out
            normals better than their mean and standard deviation over all places.
        slice_sigma: standard deviation of the blur through the slices of a volume, as a fraction of the distance from
            the first processed slice to the last, 0 or more; 0 for none.
        ease_weight: weight of `ease` in a slice's score, 0 or more; the published score has 0.
        level_weight: weight of a slice's mean in its map, above 0, at most 1. The level of a whole slice differs
            between patients by more than a small lesion changes it; use 1 where a disease changes the whole image.
        global_term: join the `GlobalTerm` to the slice scores; the published score has none.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> score = Score(n_terms=1)
        >>> stack = score.stack(torch.rand(3, 1, 64, 64), torch.ones(3, 1, 64, 64) > 0)
        >>> scores = score(stack)
        >>> tuple(scores.anomaly_map.shape), tuple(scores.slice_scores.shape)
        ((3, 1, 64, 64), (3,))

    Source: AE-FLOW, ICLR 2023, section 3 (the published score); calibration and thresholds are this project's.
    """

    term_mean: Tensor
    term_std: Tensor
    map_std: Tensor
    fraction_mean: Tensor
    fraction_std: Tensor
    map_threshold: Tensor
    slice_threshold: Tensor
    case_threshold: Tensor
    case_rank: Tensor
    saw_volumes: Tensor
    of_mean_map: Tensor

    def __init__(
        self,
        n_terms: int = 1,
        beta: float = 0.9,
        published: bool = False,
        top_fractions: Sequence[float] | None = None,
        case_top_fraction: float | None = None,
        position_normalisation: bool = True,
        slice_sigma: float = 0.03,
        ease_weight: float = 2.0,
        level_weight: float = 0.5,
        global_term: bool = True,
    ) -> None:
        super().__init__()
        if n_terms < 1:
            raise ValueError(f"n_terms is the number of maps that are summed and has to be 1 or more; got {n_terms}.")
        if not 0 <= beta <= 1:
            raise ValueError(f"beta weighs the flow terms and has to be in [0, 1]; got {beta}.")
        if isinstance(top_fractions, (int, float)) or (top_fractions is not None and not top_fractions):
            raise ValueError(f"top_fractions is a list of one or more, as [0.05, 1.0]; got {top_fractions!r}.")
        fractions = (*(("top_fractions", f) for f in top_fractions or ()), ("case_top_fraction", case_top_fraction))
        for name, fraction in fractions:
            if fraction is not None and not 0 < fraction <= 1:
                raise ValueError(f"{name}: a fraction of the highest values has to be in (0, 1]; got {fraction}.")
        if not 0 <= slice_sigma < math.inf:
            raise ValueError(f"slice_sigma is the width of a blur and has to be 0 or more; got {slice_sigma}.")
        if not 0 <= ease_weight < math.inf:
            raise ValueError(f"ease_weight has to be 0 or more; got {ease_weight}.")
        if not 0 < level_weight <= 1:
            raise ValueError(
                f"level_weight weighs a slice's mean in its map and has to be in (0, 1]; got {level_weight}."
            )
        self.n_terms = n_terms
        self.beta = float(beta)
        self.published = bool(published)
        self._top_fractions = None if top_fractions is None else tuple(float(fraction) for fraction in top_fractions)
        self._case_top_fraction = None if case_top_fraction is None else float(case_top_fraction)
        self.position_normalisation = bool(position_normalisation)
        self.slice_sigma = float(slice_sigma)
        self.ease_weight = float(ease_weight)
        self.level_weight = float(level_weight)
        self.has_global_term = bool(global_term) and not self.published
        self.global_term = GlobalTerm()  # of slices
        self.position_norm = PositionNorm()  # of maps
        self.dissimilarity_norm = PositionNorm(grid=1)  # of slices, by their relative position
        self.register_buffer("term_mean", torch.zeros(n_terms))
        self.register_buffer("term_std", torch.ones(n_terms))
        self.register_buffer("map_std", torch.tensor(1.0))
        n_fractions = len(self._top_fractions or _OF_IMAGES[0])
        self.register_buffer("fraction_mean", torch.zeros(n_fractions))
        self.register_buffer("fraction_std", torch.ones(n_fractions))
        self.register_buffer("map_threshold", torch.tensor(math.inf))
        self.register_buffer("slice_threshold", torch.tensor(math.inf))
        self.register_buffer("case_threshold", torch.tensor(math.inf))
        # rank of the case threshold among the scores of held-out patients, and the number of patients
        self.register_buffer("case_rank", torch.zeros(2, dtype=torch.long))
        # whether held-out normals had slices of several relative positions: 1 if so, 0 if not, -1 if unknown
        self.register_buffer("saw_volumes", torch.tensor(-1))
        # whether slices of volumes are scored by the mean of the maps of several planes
        self.register_buffer("of_mean_map", torch.tensor(False))
        self.held_out = HeldOutScores()  # of cases

    @property
    def top_fractions(self) -> tuple[float, ...]:
        """Return the fractions of a slice's highest map values: as given, or by the kind of calibration data."""
        return self._top_fractions or self._of_kind[0]

    @property
    def case_top_fraction(self) -> float:
        """Return the fraction of a case's highest slice scores: as given, or by the kind of calibration data."""
        return self._case_top_fraction or self._of_kind[1]

    @property
    def _of_kind(self) -> tuple[tuple[float, ...], float]:
        return _OF_VOLUMES if int(self.saw_volumes) == 1 and not self.published else _OF_IMAGES

    @property
    def is_calibrated(self) -> bool:
        """Return whether the thresholds were fitted, which the end of a training does."""
        return math.isfinite(float(self.case_threshold))

    @property
    def thresholds(self) -> dict[str, float]:
        """Return the case, slice and map threshold by name."""
        names = ("case_threshold", "slice_threshold", "map_threshold")
        return {name: float(getattr(self, name)) for name in names}

    @property
    def expected_specificity(self) -> float:
        """Return the expected fraction of new normal cases below the case threshold; NaN before the calibration."""
        rank, n_patients = self.case_rank.tolist()
        return rank / (n_patients + 1) if n_patients else math.nan

    def term_weights(self) -> Tensor:
        """Return the weight of each standardised term: beta shared by the flow terms, 1 - beta for the last."""
        if self.n_terms == 1:
            return torch.ones_like(self.term_mean)
        weights = torch.full_like(self.term_mean, self.beta / (self.n_terms - 1))
        weights[-1] = 1 - self.beta
        return weights

    def stack(
        self, terms: Tensor, foreground: Tensor, places: Places | None = None, pooled: Tensor | None = None
    ) -> SliceStack:
        """Reduce the terms of slices to what their scores are computed from.

        Args:
            terms: (N, n_terms, H, W), not standardised.
            foreground: which pixels are above 0, (N, 1, H, W), boolean; see `foreground_of`.
            places: where the slices lie in their volumes; None for 2D images.
            pooled: see `pooled_features`, (N, channels, parts); if None, the scores have no global term.

        Returns:
            The stack. With a single term there is no reconstruction, and its dissimilarity is 0.
        """
        dissimilarity = (
            terms.new_zeros(len(terms)) if self.n_terms == 1 else mean_in_foreground(terms[:, -1:], foreground)
        )
        return SliceStack(self._weighted_sum(terms), dissimilarity, foreground, places, pooled)

    def blurred(self, stack: SliceStack) -> SliceStack:
        """Blur each slice of one plane of a volume with its neighbours; 2D images stay as they are."""
        if self.published:
            return stack
        return stack._replace(weighted_sum=blur_through_slices(stack.weighted_sum, stack.places, self.slice_sigma))

    def forward(self, stack: SliceStack) -> SliceScores:
        """Compute anomaly maps and scores of slices; call `blurred` before for slices of a volume."""
        anomaly_map, ease = self.anomaly_map(stack), self.ease(stack)
        map_scores, terms = self.map_scores(self.top_means(anomaly_map), ease), self.global_terms(stack)
        return SliceScores(anomaly_map, self.joined(map_scores, terms), ease, map_scores, terms)

    def rescored(self, scores: SliceScores, mean_map: Tensor) -> SliceScores:
        """Compute scores of slices by another map (n, 1, H, W), the mean over the planes of a volume."""
        map_scores = self.map_scores(self.top_means(mean_map), scores.ease)
        return scores._replace(slice_scores=self.joined(map_scores, scores.global_terms), map_scores=map_scores)

    def anomaly_map(self, stack: SliceStack, norm: PositionNorm | None = None) -> Tensor:
        """Compute anomaly maps of slices.

        Args:
            stack: the slices.
            norm: statistics of normals to compare with; the score's own if None.

        Returns:
            (n, 1, H, W).
        """
        if self.published:
            return stack.weighted_sum
        deviation: Tensor = (norm or self.position_norm)(stack.weighted_sum, stack.places)
        level = (1 - self.level_weight) * mean_in_foreground(deviation, stack.foreground).view(-1, 1, 1, 1)
        # outside the tissue the level is not subtracted: wide margins would turn a high level into a low mean
        return torch.where(is_tissue(stack.foreground), deviation - level, deviation.clamp_max(0))

    def ease(self, stack: SliceStack, norm: PositionNorm | None = None) -> Tensor:
        """Compute how much easier slices are to reconstruct than normals at the same relative slice position.

        Args:
            stack: the slices.
            norm: statistics of normals to compare with; the score's own if None.

        Returns:
            (n,), in standard deviations of normals: negative if harder, 0 for black slices, and 0 for all if the
            normals were of too few patients.
        """
        norm = norm or self.dissimilarity_norm
        harder: Tensor = norm(stack.dissimilarity.view(-1, 1, 1, 1), stack.places)
        is_known = stack.foreground.flatten(1).any(dim=1) & norm.is_known
        return torch.where(is_known, -harder.flatten(), 0.0)

    def global_terms(self, stack: SliceStack, term: GlobalTerm | None = None) -> Tensor:
        """Compute how unusual each slice is as a whole, see `GlobalTerm`.

        Args:
            stack: the slices.
            term: the term to use; the score's own if None.

        Returns:
            (n,), in standard deviations of normals; 0 if the score has no such term or it is unknown.
        """
        term = term or self.global_term
        if not self.has_global_term or stack.pooled is None or not term.is_known:
            return torch.zeros_like(stack.dissimilarity)
        found: Tensor = term(stack.pooled)
        return found

    @property
    def knows_global_terms(self) -> bool:
        """Return whether global terms are joined to the scores."""
        return self.has_global_term and self.global_term.is_known

    def joined(self, map_scores: Tensor, global_terms: Tensor) -> Tensor:
        """Join map scores and global terms by a soft maximum; without known terms, return the map scores."""
        if not self.knows_global_terms:
            return map_scores
        return self.global_term.joined(map_scores, global_terms)

    def formula(self, map_score: str, term: str) -> str:
        """Return the formula of `joined` as text, with these names of the two scores.

        Example:
            >>> Score().formula("M", "G")
            'M'
        """
        return self.global_term.formula(map_score, term) if self.knows_global_terms else map_score

    def top_means(self, anomaly_map: Tensor) -> Tensor:
        """Compute the mean of each of the top fractions of the map's values: (n, 1, H, W) to (n, fractions)."""
        return top_means(anomaly_map, self.top_fractions)

    def map_scores(self, top_means: Tensor, ease: Tensor) -> Tensor:
        """Compute slice scores without the global term, from `top_means` (n, fractions) and `ease` (n,)."""
        scores = ((top_means - self.fraction_mean) / self.fraction_std).mean(dim=1)
        if self.published:
            return scores
        return scores + self.ease_weight * (ease - EASE_MARGIN).clamp_min(0)

    def case_score(self, map_scores: Mapping[str, Tensor], global_terms: Mapping[str, Tensor] | None = None) -> Tensor:
        """Compute the score of a case from those of its slices.

        Args:
            map_scores: scores of the slices of each plane ("axial", ...), (D,); NaN where a slice was skipped.
            global_terms: global terms of the slices, likewise, if known.

        Returns:
            A scalar: the `case_map_score`, `joined` to the `case_global_term`; NaN if all slices were skipped.
        """
        of_maps = self.case_map_score(map_scores)
        return self.joined(of_maps, self.case_global_term(global_terms)) if global_terms else of_maps

    def case_map_score(self, map_scores: Mapping[str, Tensor]) -> Tensor:
        """Compute the mean over planes of the mean of the top fraction of the slices' scores, a scalar."""
        looked_at = [scores[~scores.isnan()] for scores in map_scores.values()]
        planes = [top_mean(scores[None], self.case_top_fraction)[0] for scores in looked_at if len(scores)]
        return torch.stack(planes).mean() if planes else torch.tensor(math.nan)

    @staticmethod
    def case_global_term(global_terms: Mapping[str, Tensor]) -> Tensor:
        """Compute the mean over planes of the mean of the slices' global terms, a scalar."""
        return torch.stack([terms.nanmean() for terms in global_terms.values()]).mean()

    def verdict(
        self, map_scores: Mapping[str, Tensor], global_terms: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """Return all numbers that are reported for a case.

        Args:
            map_scores: see `case_score`.
            global_terms: see `case_score`.

        Returns:
            "anomaly_score" and its parts, "map_score" and "global_term" (NaN if unknown); the three thresholds by name,
            "p_value" (see `HeldOutScores`) and "n_held_out".
        """
        of_maps, term = self.case_map_score(map_scores), torch.tensor(math.nan)
        of_all = of_maps
        if global_terms and self.knows_global_terms:
            term = self.case_global_term(global_terms)
            of_all = self.joined(of_maps, term)
        case_score = float(of_all)
        parts = {"map_score": float(of_maps), "global_term": float(term)}
        held_out = {"p_value": self.held_out.p_value(case_score), "n_held_out": float(self.held_out.n)}
        return {"anomaly_score": case_score, **parts, **self.thresholds, **held_out}

    def term_factors(self) -> tuple[Tensor, Tensor]:
        """Return the factor of each term, (n_terms,), and the constant subtracted from their sum, a scalar."""
        weights = self.term_weights()
        if self.published:
            # the published score has -SSIM where the term is 1 - SSIM
            return weights, weights.new_tensor(1 - self.beta)
        factors = weights / (self.term_std * self.map_std)
        return factors, (factors * self.term_mean).sum()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Load the state, also of an earlier version, which does not record what it was calibrated on."""
        state_dict.setdefault(f"{prefix}saw_volumes", torch.tensor(-1))
        if f"{prefix}of_mean_map" not in state_dict:  # an earlier version, with the same fractions for all
            state_dict[f"{prefix}of_mean_map"] = torch.tensor(False)
            self._top_fractions = self._top_fractions or _OF_IMAGES[0]
            self._case_top_fraction = self._case_top_fraction or _OF_IMAGES[1]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _weighted_sum(self, terms: Tensor) -> Tensor:
        factors, offset = self.term_factors()
        return (terms * factors.view(1, -1, 1, 1)).sum(dim=1, keepdim=True) - offset

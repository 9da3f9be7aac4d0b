"""Cross-fitting: held-out normals are compared with other patients, since each would look more normal beside itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aeflow_monai.score.global_term import GlobalTerm
from aeflow_monai.score.normal_slices import NormalSlices, PooledSlices, stacks_of
from aeflow_monai.score.position import PositionMoments, PositionNorm
from aeflow_monai.score.score import Score
from aeflow_monai.score.stack import SliceStack
from aeflow_monai.score.term_fitting import fit_global_term

__all__ = ["Norms", "fit_norms"]

_logger = logging.getLogger(__name__)

_GROUPS = 5  # of patients: each group is compared with the normals of the other four
_LEAST_PATIENTS = 5  # outside the group, to know the mean and spread of dissimilarities


class Norms(NamedTuple):
    """Statistics of normals that slices are compared with.

    Attributes:
        position: statistics of maps, see `Score.anomaly_map`.
        dissimilarity: statistics of the dissimilarity between slices and their reconstructions, see `Score.ease`.
        global_term: statistics of pooled features, see `Score.global_terms`.
    """

    position: PositionNorm
    dissimilarity: PositionNorm
    global_term: GlobalTerm


def fit_norms(
    score: Score, held_out: Iterable[NormalSlices], fitted: Iterable[NormalSlices], trained: Iterable[PooledSlices]
) -> dict[str, Norms]:
    """Fit the score's norms and global term, and cross-fit the same for each held-out patient.

    Args:
        score: the score whose `position_norm`, `dissimilarity_norm` and `global_term` are filled.
        held_out: see `calibrate_score`.
        fitted: see `calibrate_score`.
        trained: see `calibrate_score`.

    Returns:
        For each patient's name, norms that were fitted without the patient's group.

    Raises:
        ValueError: pooled features that are not finite, or numbers of patients, files and slices that differ.
    """
    groups = _Groups(score, held_out, fitted)
    positions = _fit_position_norm(score, groups)
    dissimilarities = _fit_dissimilarity_norm(score, groups)
    terms = _fit_global_term(score, groups, trained)
    norms = [Norms(*found) for found in zip(positions, dissimilarities, terms, strict=True)]
    return {patient: norms[group] for patient, group in groups.group_of.items()}


class _NormalMoments:
    """Moments of the normals that others are compared with."""

    def __init__(self) -> None:
        self.position = PositionMoments()
        self.dissimilarity = PositionMoments(grid=1)

    def add(self, patient: str, stack: SliceStack) -> None:
        self.position.add(stack.weighted_sum, stack.foreground, stack.places, patient)
        is_seen = stack.foreground.flatten(1).any(dim=1).view(-1, 1, 1, 1)  # black slices are always easy
        self.dissimilarity.add(stack.dissimilarity.view(-1, 1, 1, 1), is_seen, stack.places, patient)


class _Groups:
    """Held-out patients in five groups, and the fitted normals."""

    def __init__(self, score: Score, held_out: Iterable[NormalSlices], fitted: Iterable[NormalSlices]) -> None:
        self.group_of: dict[str, int] = {}
        self.moments = [_NormalMoments() for _ in range(_GROUPS)]
        self.pooled: list[dict[str, Tensor]] = [{} for _ in range(_GROUPS)]
        self.of_volumes = False
        for patient, _, _, slices, _ in stacks_of(score, held_out):
            group = self.group_of.setdefault(patient, len(self.group_of) % _GROUPS)
            self.moments[group].add(patient, slices)
            self.of_volumes |= slices.places is not None and slices.places.are_of_volumes
            if slices.pooled is not None:
                _append(self.pooled[group], patient, slices.pooled)
        self.fitted = _NormalMoments()
        for patient, _, _, slices, _ in stacks_of(score, fitted):
            self.fitted.add(patient, slices)


def _fit_position_norm(score: Score, of: _Groups) -> list[PositionNorm]:
    """Fit the score's norm to all groups, and return one for each group that is fitted without it."""
    norm, groups = score.position_norm, [moments.position for moments in of.moments]
    everybody = [*groups, of.fitted.position if score.position_normalisation else PositionMoments()]
    if all(group.is_empty for group in groups):  # black images only, whose terms then count everywhere
        norm.reset()
        return [norm] * len(groups)
    norm.fit(everybody, by_position=False)
    # compared with itself alone, a single patient would look more normal than any other
    if not score.position_normalisation or sum(not group.is_empty for group in everybody) < 2:
        return [norm] * len(groups)
    anywhere, by_place = (
        [_fitted(_without(group, everybody), norm, choice) for group in groups] for choice in (False, True)
    )
    # unaligned images have no corresponding places, so take whichever norm predicts held-out normals better
    if _log_likelihood(by_place, groups) <= _log_likelihood(anywhere, groups):
        _logger.info("Held-out normals do not lie alike: maps are not compared by position.")
        return anywhere
    norm.fit(everybody)
    return by_place


def _fit_dissimilarity_norm(score: Score, of: _Groups) -> list[PositionNorm]:
    """Fit the score's norm to all groups, and return one for each group that is fitted without it."""
    norm, groups = score.dissimilarity_norm, [moments.dissimilarity for moments in of.moments]
    everybody = [*groups, of.fitted.dissimilarity]
    choices = [everybody, *(_without(group, everybody) for group in groups)]
    counts = [len(set().union(*(moments.patients for moments in some if not moments.is_empty))) for some in choices]
    if min(counts) < _LEAST_PATIENTS:
        # all or none: otherwise thresholds would lack what ease adds to the scores of new cases
        norm.set_unknown()
        return [norm] * len(groups)
    norms = [PositionNorm(grid=1).to(norm.mean.device) for _ in choices]
    for of_some, some, n_patients in zip(norms, choices, counts, strict=True):
        of_some.fit(some)
        # prediction error of a new patient, whose mean and deviation are estimated from this many
        of_some.std.mul_(math.sqrt((n_patients + 1) / (n_patients - 1)))
    norm.load_state_dict(norms[0].state_dict())
    return norms[1:]


def _fit_global_term(score: Score, of: _Groups, trained: Iterable[PooledSlices]) -> list[GlobalTerm]:
    """Fit the score's term, and return one for each group that is fitted without it."""
    if not score.has_global_term:
        return [score.global_term] * _GROUPS
    group_of: dict[str, int] = {}
    fitted: list[dict[str, Tensor]] = [{} for _ in range(_GROUPS)]
    copies: list[dict[str, Tensor]] = [{} for _ in range(_GROUPS)]
    for batch in trained:
        for patient, pooled in zip(batch.patients, batch.pooled, strict=True):
            group = group_of.setdefault(patient, len(group_of) % _GROUPS)
            _append((copies if batch.are_copies else fitted)[group], patient, pooled[None])
    was_known = score.global_term.is_known
    terms = fit_global_term(score.global_term, of.pooled, fitted, copies, of.of_volumes)
    if was_known and not terms:
        _logger.warning("Normals of too few patients for a global term: scores are those of the maps alone now.")
    return terms or [score.global_term] * _GROUPS


def _append(found: dict[str, Tensor], patient: str, pooled: Tensor) -> None:
    found[patient] = torch.cat([found[patient], pooled.cpu()]) if patient in found else pooled.cpu()


def _without(group: PositionMoments, everybody: Sequence[PositionMoments]) -> list[PositionMoments]:
    return [other for other in everybody if other is not group]


def _fitted(moments: Sequence[PositionMoments], like: PositionNorm, by_position: bool) -> PositionNorm:
    norm = PositionNorm().to(like.mean.device)
    norm.fit(moments, by_position)
    return norm


def _log_likelihood(norms: Sequence[PositionNorm], groups: Sequence[PositionMoments]) -> float:
    return sum(norm.log_likelihood(group) for norm, group in zip(norms, groups, strict=True))

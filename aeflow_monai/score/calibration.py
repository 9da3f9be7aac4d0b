"""Calibration: fits a `Score` on normals that the training has not seen."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from aeflow_monai.geometry import Places
from aeflow_monai.score.global_term import GlobalTerm, fit_global_term
from aeflow_monai.score.position import PositionMoments, PositionNorm
from aeflow_monai.score.score import Score
from aeflow_monai.score.stack import SliceStack
from aeflow_monai.score.thresholds import (
    is_specificity_uncertain,
    patients_needed,
    require_specificity,
    set_thresholds,
    specificity_range,
)

__all__ = ["NormalSlices", "PooledSlices", "calibrate_score"]

_logger = logging.getLogger(__name__)

_GROUPS = 5  # of patients: each is compared with the normals of the other four
_LEAST_PATIENTS = 5  # beside the group at hand, to know how easy normals are to reconstruct
_DIVERGED = "the training diverged. Lower the learning rate or the flow's clamp. The model was not saved."


class NormalSlices(NamedTuple):
    """A batch of slices of normals, as any method's maps give it.

    Attributes:
        terms: (N, n_terms, H, W), see `Score`.
        foreground: (N, 1, H, W), boolean, see `foreground_of`.
        patients: whose each slice is, N names.
        files: of which image, N names; slices of one file and plane follow each other.
        places: where the slices lie in their volumes; None for images of their own.
        pooled: see `pooled_features`, (N, channels, parts); None of a method without.
    """

    terms: Tensor
    foreground: Tensor
    patients: Sequence[str]
    files: Sequence[str]
    places: Places | None
    pooled: Tensor | None = None


class PooledSlices(NamedTuple):
    """Pooled features (N, channels, parts) of a batch of normals, see `pooled_features`, and whose each slice is."""

    pooled: Tensor
    patients: Sequence[str]


@torch.no_grad()
def calibrate_score(
    score: Score,
    held_out: Iterable[NormalSlices],
    specificity: float = 0.95,
    fitted: Iterable[NormalSlices] = (),
    trained: Iterable[PooledSlices] = (),
) -> None:
    """Fill the score's buffers: units of the terms, normals by position, unit of slice scores, thresholds.

    Terms and places count where there is foreground. Maps are compared by position if that predicts held-out
    normals better, see `Score`; `Score.ease` needs five patients outside each group, that is seven held-out ones if
    `fitted` is empty. `case_threshold` and `slice_threshold` are `upper_threshold` of the scores; `map_threshold`
    is that of each slice's highest map value, so that this fraction of normal slices has an empty mask. A held-out
    case is compared with other cases only (five groups in turn, and `fitted`): compared with itself it would look
    more normal than a new one. The published score is not standardised; it gets thresholds.

    Args:
        score: whose buffers are filled.
        held_out: normals that the method was not fitted on. Has to be iterable three times.
        specificity: fraction of normals that the thresholds should let pass, in (0, 1).
        fitted: normals that the method was fitted on. With the held-out ones they give mean and deviation by position,
            and of how easy slices are to reconstruct, for which few held-out cases are not enough. The unit of scores
            and all thresholds are of held-out normals alone.
        trained: of all normals that the method was fitted on, for the global term, which needs many; see
            `fit_global_term`. If none are given, a term that is known moves to the held-out ones.

    Raises:
        ValueError: no slices, or such as can be iterated once only; a specificity out of its range; terms or scores
            that are not finite. The score's buffers are then as before.
    """
    require_specificity(specificity)
    if any(isinstance(slices, Iterator) for slices in (held_out, fitted)):
        raise ValueError("Calibration goes over the slices three times: give a list or a DataLoader, no generator.")
    with _restored_after_an_error(score):
        norms: dict[str, _Norms] = {}
        if not score.published:
            _fit_terms(score, held_out)
            groups = _Groups(score, held_out, fitted)
            positions = _fit_position_norm(score, groups)
            dissimilarities = _fit_dissimilarity_norm(score, groups)
            terms = _fit_global_term(score, groups, trained)
            of_groups = [_Norms(*found) for found in zip(positions, dissimilarities, terms, strict=True)]
            norms = {patient: of_groups[group] for patient, group in groups.group_of.items()}
        scored = _scored(score, held_out, norms)
        _fit_slice_scores(score, scored)
        _fit_thresholds(score, scored, specificity)


@contextmanager
def _restored_after_an_error(score: Score) -> Iterator[None]:
    """New units with old thresholds would look like a calibrated model."""
    before = {name: buffer.clone() for name, buffer in score.state_dict().items()}
    try:
        yield
    except BaseException:
        score.load_state_dict(before)
        raise


class _Moments:
    """Mean and covariance of terms (n_terms, positions), added up in parts."""

    def __init__(self, n_terms: int) -> None:
        self.count = 0
        self.total = torch.zeros(n_terms, dtype=torch.float64)
        self.products = torch.zeros(n_terms, n_terms, dtype=torch.float64)

    def add(self, terms: Tensor) -> None:
        self.count += terms.shape[1]
        self.total += terms.sum(dim=1)
        self.products += terms @ terms.T

    def compute(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean, self.products / self.count - mean[:, None] * mean[None, :]


def _fit_terms(score: Score, held_out: Iterable[NormalSlices]) -> None:
    # an empty background is like no tissue, and would set the unit of all maps; it counts if there is nothing else
    foreground, everywhere = _Moments(score.n_terms), _Moments(score.n_terms)
    for slices in held_out:
        terms = slices.terms.double().cpu().transpose(0, 1)
        foreground.add(terms[:, slices.foreground[:, 0].cpu()])
        everywhere.add(terms.flatten(1))
    if not everywhere.count:
        raise ValueError("Calibration needs held-out normal images; got none.")
    mean, covariance = (foreground if foreground.count else everywhere).compute()
    std = covariance.diagonal().clamp_min(0).sqrt()
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise ValueError(f"The terms of held-out normals are not finite (mean {mean.tolist()}): {_DIVERGED}")
    # a term that is constant over the normals carries no information; its unit is left alone
    std[std == 0] = 1.0
    score.term_mean.copy_(mean)
    score.term_std.copy_(std)
    factors = score.term_weights().double().cpu() / std
    score.map_std.copy_((factors @ covariance @ factors).clamp_min(1e-12).sqrt())


class _Stack(NamedTuple):
    """The slices of one plane of one image, blurred through the slices, and whose they are."""

    patient: str
    file: str
    plane: str
    slices: SliceStack


def _stacks(score: Score, batches: Iterable[NormalSlices]) -> Iterator[_Stack]:
    """What batches hold, put together by image and plane."""
    waiting: list[_Stack] = []
    for batch in batches:
        stack = score.stack(batch.terms, batch.foreground, batch.places, batch.pooled)
        for index, patient, file in zip(range(len(batch.terms)), batch.patients, batch.files, strict=True):
            plane = "axial" if batch.places is None else batch.places.planes[index]
            one = _Stack(patient, file, plane, stack.part(slice(index, index + 1)))
            if waiting and (one.slices.places is None or one[:3] != waiting[0][:3]):
                yield _joined(score, waiting)
                waiting = []
            waiting.append(one)
    if waiting:
        yield _joined(score, waiting)


def _joined(score: Score, parts: Sequence[_Stack]) -> _Stack:
    return parts[0]._replace(slices=score.blurred(SliceStack.join([part.slices for part in parts])))


class _NormalMoments:
    """Adds up the normals that others are compared with."""

    def __init__(self) -> None:
        self.position = PositionMoments()
        self.dissimilarity = PositionMoments(grid=1)

    def add(self, patient: str, stack: SliceStack) -> None:
        self.position.add(stack.weighted_sum, stack.foreground, stack.places, patient)
        is_seen = stack.foreground.flatten(1).any(dim=1).view(-1, 1, 1, 1)  # black slices are easy, whoever has them
        self.dissimilarity.add(stack.dissimilarity.view(-1, 1, 1, 1), is_seen, stack.places, patient)


class _Groups:
    """Held-out patients in five groups, and the fitted normals beside them."""

    def __init__(self, score: Score, held_out: Iterable[NormalSlices], fitted: Iterable[NormalSlices]) -> None:
        self.group_of: dict[str, int] = {}
        self.moments = [_NormalMoments() for _ in range(_GROUPS)]
        self.pooled: list[dict[str, Tensor]] = [{} for _ in range(_GROUPS)]
        for patient, _, _, slices in _stacks(score, held_out):
            group = self.group_of.setdefault(patient, len(self.group_of) % _GROUPS)
            self.moments[group].add(patient, slices)
            if slices.pooled is not None:
                _append(self.pooled[group], patient, slices.pooled)
        self.fitted = _NormalMoments()
        for patient, _, _, slices in _stacks(score, fitted):
            self.fitted.add(patient, slices)


class _Norms(NamedTuple):
    """What a held-out patient is compared with."""

    position: PositionNorm
    dissimilarity: PositionNorm
    global_term: GlobalTerm


def _fit_position_norm(score: Score, of: _Groups) -> list[PositionNorm]:
    """Fit the score's norm, and for each group give one that is fitted to all but this."""
    norm, groups = score.position_norm, [moments.position for moments in of.moments]
    everybody = [*groups, of.fitted.position if score.position_normalisation else PositionMoments()]
    if all(group.is_empty for group in groups):  # black images, whose terms count everywhere
        norm.reset()
        return [norm] * len(groups)
    norm.fit(everybody, by_position=False)
    # compared with itself alone, a single patient would look more normal than any other
    if not score.position_normalisation or sum(not group.is_empty for group in everybody) < 2:
        return [norm] * len(groups)
    anywhere, by_place = (
        [_fitted(_without(group, everybody), norm, choice) for group in groups] for choice in (False, True)
    )
    # images that do not lie alike have no places: whichever predicts held-out normals better
    if _log_likelihood(by_place, groups) <= _log_likelihood(anywhere, groups):
        _logger.info("Held-out normals do not lie alike: maps are not compared by position.")
        return anywhere
    norm.fit(everybody)
    return by_place


def _fit_dissimilarity_norm(score: Score, of: _Groups) -> list[PositionNorm]:
    """Fit the score's norm, and for each group give one that is fitted to all but this."""
    norm, groups = score.dissimilarity_norm, [moments.dissimilarity for moments in of.moments]
    everybody = [*groups, of.fitted.dissimilarity]
    choices = [everybody, *(_without(group, everybody) for group in groups)]
    counts = [len(set().union(*(moments.patients for moments in some if not moments.is_empty))) for some in choices]
    if min(counts) < _LEAST_PATIENTS:
        # all or none: thresholds would else be of scores without what is added to those of new cases
        norm.set_unknown()
        return [norm] * len(groups)
    norms = [PositionNorm(grid=1).to(norm.mean.device) for _ in choices]
    for of_some, some, n_patients in zip(norms, choices, counts, strict=True):
        of_some.fit(some)
        # of a new patient, from the mean and deviation of so many
        of_some.std.mul_(math.sqrt((n_patients + 1) / (n_patients - 1)))
    norm.load_state_dict(norms[0].state_dict())
    return norms[1:]


def _fit_global_term(score: Score, of: _Groups, trained: Iterable[PooledSlices]) -> list[GlobalTerm]:
    """Fit the score's term, and for each group give one that is fitted to all but this."""
    if not score.has_global_term:
        return [score.global_term] * _GROUPS
    group_of: dict[str, int] = {}
    fitted: list[dict[str, Tensor]] = [{} for _ in range(_GROUPS)]
    for batch in trained:
        for patient, pooled in zip(batch.patients, batch.pooled, strict=True):
            _append(fitted[group_of.setdefault(patient, len(group_of) % _GROUPS)], patient, pooled[None])
    return fit_global_term(score.global_term, of.pooled, fitted) or [score.global_term] * _GROUPS


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


class _Scored(NamedTuple):
    """What maps of held-out normals say of each slice."""

    origin: list[tuple[str, str, str]]  # patient, file and plane
    peaks: list[float]
    top_means: Tensor  # (n, fractions)
    ease: Tensor  # (n,)
    global_terms: Tensor  # (n,)


def _scored(score: Score, held_out: Iterable[NormalSlices], norms: Mapping[str, _Norms]) -> _Scored:
    origin: list[tuple[str, str, str]] = []
    peaks: list[float] = []
    means: list[Tensor] = []
    eases: list[Tensor] = []
    terms: list[Tensor] = []
    own = _Norms(score.position_norm, score.dissimilarity_norm, score.global_term)
    for patient, file, plane, slices in _stacks(score, held_out):
        norm = norms.get(patient, own)
        anomaly_map = score.anomaly_map(slices, norm.position)
        peaks += anomaly_map.flatten(1).amax(dim=1).tolist()
        means.append(score.top_means(anomaly_map).double().cpu())
        eases.append(score.ease(slices, norm.dissimilarity))
        terms.append(score.global_terms(slices, norm.global_term))
        origin += [(patient, file, plane)] * len(anomaly_map)
    if not means:
        raise ValueError("Calibration needs held-out normal images; got none.")
    return _Scored(origin, peaks, torch.cat(means), torch.cat(eases), torch.cat(terms))


def _fit_slice_scores(score: Score, scored: _Scored) -> None:
    if not torch.isfinite(scored.top_means).all():
        raise ValueError(f"Scores of held-out normals are not finite: {_DIVERGED}")
    if score.published:
        return
    score.fraction_mean.copy_(scored.top_means.mean(dim=0))
    std = scored.top_means.std(dim=0, correction=0)
    std[std == 0] = 1.0
    score.fraction_std.copy_(std)


def _fit_thresholds(score: Score, scored: _Scored, specificity: float) -> None:
    map_scores = score.map_scores(scored.top_means.to(score.fraction_mean), scored.ease)
    scores, terms = score.joined(map_scores, scored.global_terms).cpu(), scored.global_terms.cpu()
    # by file, as evaluation and inference score: a case may have several images
    of_images: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, (patient, file, plane) in enumerate(scored.origin):
        of_images[patient, file][plane].append(number)
    of_cases = [
        [{plane: values[found] for plane, found in planes.items()} for values in (map_scores.cpu(), terms)]
        for planes in of_images.values()
    ]
    cases = [float(score.case_score(*of_case)) for of_case in of_cases]
    patients = [patient for patient, _ in of_images]
    set_thresholds(score, cases, scores, scored.peaks, patients, specificity)
    n_patients = score.held_out.n
    if n_patients < patients_needed(specificity):
        _logger.warning(
            f"Held-out normals of {n_patients} patients are too few for a specificity of {100 * specificity:.4g}%, "
            f"which takes {patients_needed(specificity)}: expect {100 * score.expected_specificity:.3g}%."
        )
    rank = int(score.case_rank[0])
    if is_specificity_uncertain(rank, n_patients):
        low, high = (100 * limit for limit in specificity_range(rank, n_patients))
        _logger.warning(
            f"The threshold of cases comes from {n_patients} held-out patients. By their chance the specificity on new "
            f"normal cases may be anything from {low:.0f}% to {high:.0f}% (nine of ten times); more normals make it "
            "certain, as does a calibration on them."
        )

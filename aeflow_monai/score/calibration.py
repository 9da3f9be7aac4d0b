"""Calibration of a `Score` on held-out normals."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from aeflow_monai.printable import counted
from aeflow_monai.score.cross_fitting import Norms, fit_norms
from aeflow_monai.score.normal_slices import NormalSlices, NormalStack, PooledSlices, stacks_of
from aeflow_monai.score.score import Score
from aeflow_monai.score.thresholds import (
    is_specificity_uncertain,
    patients_needed,
    require_specificity,
    set_thresholds,
    specificity_range,
)

__all__ = ["calibrate_score"]

_logger = logging.getLogger(__name__)

# Maps maps and grids of a volume's planes to each plane's mean map and the highest value of each of its slices.
OverPlanes = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, tuple[Tensor, Tensor]]]

_DIVERGED = "the training diverged. Lower the learning rate or the flow's clamp. The model was not saved."


@torch.no_grad()
def calibrate_score(
    score: Score,
    held_out: Iterable[NormalSlices],
    specificity: float = 0.95,
    fitted: Iterable[NormalSlices] = (),
    trained: Iterable[PooledSlices] = (),
    over_planes: OverPlanes | None = None,
) -> dict[str, float]:
    """Fit the score's buffers: units of the terms, position normalisation, unit of slice scores, thresholds.

    Only foreground counts. Maps are compared by position if this predicts held-out normals better, see `Score`;
    `Score.ease` needs five patients outside each group, that is, seven held-out patients if `fitted` is empty.
    `case_threshold` and `slice_threshold` are the `upper_threshold` of the scores; `map_threshold` is that of each
    slice's highest map value, so that this fraction of normal slices has an empty mask. Held-out cases are
    cross-fitted: each is compared with other cases only (five groups in turn, and `fitted`), since it would look more
    normal than a new case if compared with itself. The published score is not standardised and gets only thresholds.

    Args:
        score: the score whose buffers are filled.
        held_out: normals that the method was not fitted on. They are iterated over three times.
        specificity: fraction of normals that the thresholds should classify as normal, in (0, 1).
        fitted: normals that the method was fitted on. Together with the held-out ones they give mean and standard
            deviation by position and of the dissimilarity, for which few held-out cases are not enough. The unit of
            scores and all thresholds come from held-out normals only.
        trained: pooled features of all normals that the method was fitted on, for the global term, which needs many;
            see `fit_global_term`. If there are none, a term that was fitted before is moved to the held-out normals.
        over_planes: function from the maps of a volume's planes and their grids (see `NormalSlices`) to each plane's
            slices of the mean map of all planes, and the highest value of each slice at the volume's original size. If
            given, volumes are scored and thresholds set by the mean map. The published score is computed per plane.

    Returns:
        The scores of the held-out images by file, from which the case threshold is set.

    Raises:
        ValueError: no slices, or an iterator that can be used only once; specificity out of range; terms or scores that
            are not finite; several planes of a volume without grids. The score's buffers are then restored.
    """
    require_specificity(specificity)
    if any(isinstance(slices, Iterator) for slices in (held_out, fitted)):
        raise ValueError("Calibration goes over the slices three times: give a list or a DataLoader, no generator.")
    with _restored_after_an_error(score):
        norms: dict[str, Norms] = {}
        if not score.published:
            score.saw_volumes.fill_(_fit_terms(score, held_out))  # selects the default top fractions
            score.of_mean_map.fill_(over_planes is not None and int(score.saw_volumes) == 1)
            norms = fit_norms(score, held_out, fitted, trained)
        scored = _scored(score, held_out, norms, over_planes if score.of_mean_map else None)
        _fit_slice_scores(score, scored)
        found = _fit_thresholds(score, scored, specificity)
        score.saw_volumes.fill_(bool(scored.volumes))
        _warn_of_mixture(scored)
    return found


@contextmanager
def _restored_after_an_error(score: Score) -> Iterator[None]:
    """Restore the score's state on an error: new units with old thresholds would look like a calibrated model."""
    before = {name: buffer.clone() for name, buffer in score.state_dict().items()}
    try:
        yield
    except BaseException:
        score.load_state_dict(before)
        raise


class _Moments:
    """Mean and covariance of terms (n_terms, positions), accumulated in batches."""

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


def _fit_terms(score: Score, held_out: Iterable[NormalSlices]) -> bool:
    """Fit the units of the terms, and return whether the normals are slices of volumes."""
    # an empty background would determine the unit of all maps; it counts only if there is no foreground
    foreground, everywhere = _Moments(score.n_terms), _Moments(score.n_terms)
    known: dict[str, list[bool]] = defaultdict(list)  # by file
    of_volumes = False
    for slices in held_out:
        of_volumes |= slices.places is not None and slices.places.are_of_volumes
        if slices.pooled is not None:
            for file, is_known in zip(slices.files, score.global_term.knows(slices.pooled).tolist(), strict=True):
                known[file].append(is_known)
        terms = slices.terms.double().cpu().transpose(0, 1)
        foreground.add(terms[:, slices.foreground[:, 0].cpu()])
        everywhere.add(terms.flatten(1))
    if not everywhere.count:
        raise ValueError("Calibration needs held-out normal images; got none.")
    if n_known := sum(sum(of_slices) > len(of_slices) / 2 for of_slices in known.values()):
        _logger.warning(
            f"{n_known} of {len(known)} normals have the features of images that the model was trained or calibrated "
            "on, as the same images have in another format or size. Thresholds of images that the model knows are too "
            "low: take them out."
        )
    mean, covariance = (foreground if foreground.count else everywhere).compute()
    std = covariance.diagonal().clamp_min(0).sqrt()
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise ValueError(f"The terms of held-out normals are not finite (mean {mean.tolist()}): {_DIVERGED}")
    # a term that is constant over the normals carries no information, so its unit is left alone
    std[std == 0] = 1.0
    score.term_mean.copy_(mean)
    score.term_std.copy_(std)
    factors = score.term_weights().double().cpu() / std
    score.map_std.copy_((factors @ covariance @ factors).clamp_min(1e-12).sqrt())
    return of_volumes


class _Scored(NamedTuple):
    """Results for each slice of held-out normals."""

    origin: list[tuple[str, str, str]]  # patient, file and plane
    peaks: list[float]
    top_means: Tensor  # (n, fractions)
    ease: Tensor  # (n,)
    global_terms: Tensor  # (n,)
    volumes: set[str]  # files with several relative slice positions


def _scored(
    score: Score, held_out: Iterable[NormalSlices], norms: Mapping[str, Norms], over_planes: OverPlanes | None
) -> _Scored:
    origin: list[tuple[str, str, str]] = []
    peaks: list[float] = []
    means: list[Tensor] = []
    eases: list[Tensor] = []
    terms: list[Tensor] = []
    volumes: set[str] = set()
    own = Norms(score.position_norm, score.dissimilarity_norm, score.global_term)
    for stack, anomaly_map, highest in _with_maps(score, held_out, norms, own, over_planes):
        patient, file, plane, slices, _ = stack
        norm = norms.get(patient, own)
        peaks += highest.tolist()
        means.append(score.top_means(anomaly_map).double().cpu())
        eases.append(score.ease(slices, norm.dissimilarity))
        terms.append(score.global_terms(slices, norm.global_term))
        origin += [(patient, file, plane)] * len(anomaly_map)
        if slices.places is not None and slices.places.are_of_volumes:
            volumes.add(file)
    if not means:
        raise ValueError("Calibration needs held-out normal images; got none.")
    return _Scored(origin, peaks, torch.cat(means), torch.cat(eases), torch.cat(terms), volumes)


def _with_maps(
    score: Score,
    held_out: Iterable[NormalSlices],
    norms: Mapping[str, Norms],
    own: Norms,
    over_planes: OverPlanes | None,
) -> Iterator[tuple[NormalStack, Tensor, Tensor]]:
    """Yield the stacks of held-out normals with the maps for scoring and their highest value in each slice."""
    for (patient, _), group in groupby(stacks_of(score, held_out), key=lambda stack: (stack.patient, stack.file)):
        stacks = list(group)
        maps = [score.anomaly_map(stack.slices, norms.get(patient, own).position) for stack in stacks]
        peaks = [each.flatten(1).amax(dim=1) for each in maps]
        if over_planes is not None and not all(_is_picture(stack) for stack in stacks):
            grids = {stack.plane: stack.grid for stack in stacks if stack.grid is not None}
            if len(grids) < len(stacks):
                raise ValueError(
                    f"The planes of {stacks[0].file} cannot be put together: of each the slices have to follow each "
                    "other, with their numbers and the shape of the volume."
                )
            means = over_planes({stack.plane: each for stack, each in zip(stacks, maps, strict=True)}, grids)
            maps, peaks = ([means[stack.plane][part] for stack in stacks] for part in (0, 1))
        yield from zip(stacks, maps, peaks, strict=True)


def _is_picture(stack: NormalStack) -> bool:
    return stack.slices.places is None or (stack.grid is not None and int(stack.grid[0, 3]) == 1)


def _warn_of_mixture(scored: _Scored) -> None:
    n_images = len({file for _, file, _ in scored.origin})
    if 0 < len(scored.volumes) < n_images:
        _logger.warning(
            f"{len(scored.volumes)} of {n_images} normals that thresholds are set on are volumes, and the others "
            "single slices. Scores and thresholds of one kind do not hold for the other: take a model for each."
        )


def _fit_slice_scores(score: Score, scored: _Scored) -> None:
    if not torch.isfinite(scored.top_means).all():
        raise ValueError(f"Scores of held-out normals are not finite: {_DIVERGED}")
    if score.published:
        return
    score.fraction_mean.copy_(scored.top_means.mean(dim=0))
    std = scored.top_means.std(dim=0, correction=0)
    std[std == 0] = 1.0
    score.fraction_std.copy_(std)


def _fit_thresholds(score: Score, scored: _Scored, specificity: float) -> dict[str, float]:
    map_scores = score.map_scores(scored.top_means.to(score.fraction_mean), scored.ease)
    scores, terms = score.joined(map_scores, scored.global_terms).cpu(), scored.global_terms.cpu()
    # per file, as in evaluation and inference: a case may have several images
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
            f"Held-out normals of {counted(n_patients, 'patient')} are too few for a specificity of "
            f"{100 * specificity:.4g}%, which takes {patients_needed(specificity)}: expect "
            f"{100 * score.expected_specificity:.3g}%."
        )
    rank = int(score.case_rank[0])
    if is_specificity_uncertain(rank, n_patients):
        low, high = (100 * limit for limit in specificity_range(rank, n_patients))
        _logger.warning(
            f"The threshold of cases comes from normals of {counted(n_patients, 'patient')}. By their chance the "
            f"specificity on new normal cases may be anything from {low:.0f}% to {high:.0f}% (nine of ten times). "
            "Normals of more patients make this narrower, in a calibration or in the training, which holds out "
            "calibration_fraction of them."
        )
    return {file: case for (_, file), case in zip(of_images, cases, strict=True)}

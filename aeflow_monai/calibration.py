"""Calibration: fits an `AnomalyScorer`'s buffers on normals that the training has not seen."""

from __future__ import annotations

import logging
import math
import os
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aeflow_monai.aeflow import AEFlowOutput
from aeflow_monai.position import PositionMoments, PositionNorm
from aeflow_monai.scoring import AnomalyScorer
from aeflow_monai.slicing import Places, foreground_of, places_of
from aeflow_monai.thresholds import require_specificity, set_thresholds

__all__ = ["calibrate", "recalibrate", "save_calibrated"]

_logger = logging.getLogger(__name__)

_GROUPS = 5  # of patients: what is usual in four of them is what the fifth is compared with
_LEAST_PATIENTS = 5  # beside the group at hand, to tell what is too easy to reconstruct


@torch.no_grad()
def calibrate(
    scorer: AnomalyScorer,
    batches: Iterable[Mapping[str, Any]],
    specificity: float = 0.95,
    device: torch.device | str | None = None,
    fitted: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Fill the scorer's buffers: moments of each term, what is usual where, moments of slice scores, thresholds.

    Terms and places count where there is foreground. Maps are compared by place if that predicts held-out normals
    better than what is usual anywhere does, see `AnomalyScorer`; what is too easy to reconstruct takes five patients
    beside any group of held-out ones: seven, without `fitted`.
    `case_threshold` and `slice_threshold` are `upper_threshold` of the scores; `map_threshold` is that of each slice's
    highest map value, so that this share of normal slices has an empty mask. What a case is compared with for that
    comes from other cases (five groups in turn, and `fitted`): of few normals the maps would else be smaller than those
    of a new one. The published score is not standardised, it gets thresholds.

    Args:
        scorer: trained; is set to evaluation mode and back.
        batches: dictionaries with "image" (N, C, H, W) in [0, 1], "case" (N names), possibly "patient" (N names, where
            a patient has several cases), "file" (N paths, where a case has several images), "axis" and "height" (N
            planes and N numbers, of slices of volumes; see `Places`) and, if kept, "features" (a list, see
            `Encoder.forward`). Has to be iterable three times, and the network runs each time; must hold normals only,
            and the slices of a volume's plane one after the other.
        specificity: share of normals that the thresholds should let pass, in (0, 1).
        device: where the scorer lies; that of its buffers if None.
        fitted: batches of normals that the network was trained on, of the same kind. They tell, with the held-out ones,
            what mean and deviation maps have where and how easy slices are to reconstruct, for which few held-out
            cases are not enough. The unit of scores and all thresholds are of held-out normals alone. (The network
            knows those that it was trained on better, so what is called too easy is all the easier.)

    Raises:
        ValueError: no batches, or such as can be iterated once only; a specificity out of its range; images or
            statistics that are not finite (the training diverged). The scorer's buffers are then as before.
    """
    require_specificity(specificity)
    if any(isinstance(batched, Iterator) for batched in (batches, fitted)):
        raise ValueError("Calibration goes over the batches three times: give a list or a DataLoader, no generator.")
    device = scorer.term_mean.device if device is None else device
    was_training = scorer.training
    own = {name: buffer for name, buffer in scorer.named_buffers() if not name.startswith("aeflow.")}
    before = {name: buffer.clone() for name, buffer in own.items()}
    scorer.eval()
    try:
        usual: dict[str, _Usual] = {}
        if scorer.is_standardised:
            _fit_terms(scorer, batches, device)
            usual = _fit_usual(scorer, batches, fitted, device)
        _fit_scores(scorer, batches, specificity, device, usual)
    except BaseException:
        # new terms with old thresholds would look like a calibrated model
        for name, buffer in before.items():
            own[name].copy_(buffer)
        raise
    finally:
        scorer.train(was_training)


def save_calibrated(scorer: AnomalyScorer, path: str | Path) -> None:
    """Save a model with its calibration, and tell its thresholds.

    Args:
        scorer: calibrated.
        path: of the checkpoint: a dictionary with the state dict under "model". Whoever reads an earlier one meanwhile
            finds it whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save({"model": scorer.state_dict()}, unfinished)
    unfinished.replace(path)
    _logger.info(
        f"Calibrated on held-out normals: case threshold {float(scorer.case_threshold):.3f}, slice threshold "
        f"{float(scorer.slice_threshold):.3f}, map threshold {float(scorer.map_threshold):.3f}. Saved {path}."
    )


def recalibrate(
    scorer: AnomalyScorer,
    ckpt_path: str | Path,
    batches: Iterable[Mapping[str, Any]],
    path: str | Path,
    specificity: float = 0.95,
) -> None:
    """Calibrate a trained model anew, on normals like those that it will meet, and save it at another place.

    Args:
        scorer: network of the model.
        ckpt_path: of the model.
        batches: normals that it was not trained on, see `calibrate`; without kept features, which the network may not
            have been there to compute.
        path: of the new model.
        specificity: see `calibrate`.

    Raises:
        ValueError: the file holds no model, or one of another network.
    """
    scorer.load_state_dict(_stored(ckpt_path))
    calibrate(scorer, batches, specificity)
    save_calibrated(scorer, path)


def _stored(path: str | Path) -> Mapping[str, Tensor]:
    """The state dict in the file of a model."""
    refused = f"{path} is no model: expected the model.pt that a training ends with."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, TypeError) as error:  # RuntimeError: cut short
        raise ValueError(refused) from error
    if not (isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(refused)
    return state


def _output(scorer: AnomalyScorer, batch: Mapping[str, Any], device: torch.device | str) -> tuple[AEFlowOutput, Tensor]:
    image = torch.as_tensor(batch["image"]).to(device)
    is_finite = torch.isfinite(image).flatten(1).all(dim=1)
    if not is_finite.all():
        case = batch["case"][is_finite.tolist().index(False)]
        raise ValueError(f"The image of case {case} holds NaN or infinite values: mend it, or leave it out.")
    features = batch.get("features")
    kept = None if features is None else [stage.to(device).float() for stage in features]
    return scorer.aeflow(image, kept), image


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


def _fit_terms(scorer: AnomalyScorer, batches: Iterable[Mapping[str, Any]], device: torch.device | str) -> None:
    # an empty background is like no tissue, and would set the unit of all maps; it counts if there is nothing else
    foreground, everywhere = _Moments(len(scorer.term_mean)), _Moments(len(scorer.term_mean))
    for batch in batches:
        output, image = _output(scorer, batch, device)
        terms = scorer.terms(output, image).double().cpu().transpose(0, 1)
        foreground.add(terms[:, foreground_of(image)[:, 0].cpu()])
        everywhere.add(terms.flatten(1))
    if not everywhere.count:
        raise ValueError("Calibration needs held-out normal images; got none.")
    mean, covariance = (foreground if foreground.count else everywhere).compute()
    std = covariance.diagonal().clamp_min(0).sqrt()
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise ValueError(
            f"The terms of held-out normals are not finite (mean {mean.tolist()}): the training diverged. "
            "Lower the learning rate or the flow's clamp. The model was not saved."
        )
    # a term that is constant over the normals carries no information; its unit is left alone
    std[std == 0] = 1.0
    scorer.term_mean.copy_(mean)
    scorer.term_std.copy_(std)
    factors = scorer.term_weights().double().cpu() / std
    scorer.map_std.copy_((factors @ covariance @ factors).clamp_min(1e-12).sqrt())


class _Stack(NamedTuple):
    """The slices of one plane of one volume; or an image of its own."""

    patient: str
    file: str
    axis: str
    weighted_sum: Tensor  # (n, 1, H, W), blurred through the slices
    dissimilarity: Tensor  # (n,)
    foreground: Tensor  # (n, 1, H, W)
    places: Places | None


def _stacks(
    scorer: AnomalyScorer, batches: Iterable[Mapping[str, Any]], device: torch.device | str
) -> Iterator[_Stack]:
    """What batches hold, put together by volume and plane, whose slices have to follow each other."""
    waiting: list[_Stack] = []
    for batch in batches:
        output, image = _output(scorer, batch, device)
        measured, foreground = scorer.measure(output, image), foreground_of(image)
        places = places_of(batch)
        patients = batch.get("patient", batch["case"])
        files = batch.get("file", batch["case"])
        axes = batch.get("axis", ["axial"] * len(files))
        for index, patient, file, axis in zip(range(len(image)), patients, files, axes, strict=True):
            one = slice(index, index + 1)
            place = None if places is None else Places(axes[one], places.heights[one])
            if waiting and (place is None or (patient, file, axis) != waiting[0][:3]):
                yield _joined(scorer, waiting)
                waiting = []
            sums, dissimilarity = (part[one] for part in measured)
            waiting.append(_Stack(patient, file, axis, sums, dissimilarity, foreground[one], place))
    if waiting:
        yield _joined(scorer, waiting)


def _joined(scorer: AnomalyScorer, slices: Sequence[_Stack]) -> _Stack:
    first = slices[0]
    sums, dissimilarity, foreground = (
        torch.cat(parts)
        for parts in zip(*((s.weighted_sum, s.dissimilarity, s.foreground) for s in slices), strict=True)
    )
    found = [s.places for s in slices if s.places is not None]
    places = Places([first.axis] * len(found), torch.cat([place.heights for place in found])) if found else None
    sums = scorer.through_slices(sums, places)
    return first._replace(weighted_sum=sums, dissimilarity=dissimilarity, foreground=foreground, places=places)


class _Usual(NamedTuple):
    """What a patient is compared with."""

    position: PositionNorm
    dissimilarity: PositionNorm


class _UsualMoments:
    """Adds up what is usual of some patients."""

    def __init__(self) -> None:
        self.position = PositionMoments()
        self.dissimilarity = PositionMoments(grid=1)

    def add(self, stack: _Stack) -> None:
        self.position.add(stack.weighted_sum, stack.foreground, stack.places, stack.patient)
        is_seen = stack.foreground.flatten(1).any(dim=1).view(-1, 1, 1, 1)  # black slices are easy, whoever has them
        self.dissimilarity.add(stack.dissimilarity.view(-1, 1, 1, 1), is_seen, stack.places, stack.patient)


def _fit_usual(
    scorer: AnomalyScorer,
    batches: Iterable[Mapping[str, Any]],
    fitted: Iterable[Mapping[str, Any]],
    device: torch.device | str,
) -> dict[str, _Usual]:
    """Fit the scorer's, and for each held-out patient one that does not know them."""
    group_of: dict[str, int] = {}
    groups = [_UsualMoments() for _ in range(_GROUPS)]
    for stack in _stacks(scorer, batches, device):
        groups[group_of.setdefault(stack.patient, len(group_of) % _GROUPS)].add(stack)
    others = _UsualMoments()
    for stack in _stacks(scorer, fitted, device):
        others.add(stack)
    positions = _fit_position(
        scorer, [group.position for group in groups], others.position if scorer.by_position else PositionMoments()
    )
    dissimilarities = _fit_dissimilarity(scorer, [group.dissimilarity for group in groups], others.dissimilarity)
    return {patient: _Usual(positions[group], dissimilarities[group]) for patient, group in group_of.items()}


def _fit_position(
    scorer: AnomalyScorer, groups: Sequence[PositionMoments], others: PositionMoments
) -> list[PositionNorm]:
    """Fit what is usual where, and for each group give one that is fitted to all but this."""
    norm, all_of_them = scorer.position, [*groups, others]
    if all(group.is_empty for group in groups):  # black images, whose terms count everywhere
        norm.reset()
        return [norm] * len(groups)
    norm.fit(all_of_them, by_position=False)
    # compared with itself alone, a single patient would look more normal than any other
    if not scorer.by_position or sum(not group.is_empty for group in all_of_them) < 2:
        return [norm] * len(groups)
    anywhere, by_place = (
        [_fitted(_without(group, all_of_them), norm, choice) for group in groups] for choice in (False, True)
    )
    # images that do not lie alike have no places: whichever predicts held-out normals better
    if _log_likelihood(by_place, groups) <= _log_likelihood(anywhere, groups):
        _logger.info("Held-out normals do not lie alike: maps are compared with what is usual anywhere, not by place.")
        return anywhere
    norm.fit(all_of_them)
    return by_place


def _fit_dissimilarity(
    scorer: AnomalyScorer, groups: Sequence[PositionMoments], others: PositionMoments
) -> list[PositionNorm]:
    """Fit how unlike their reconstructions slices are, and for each group give one that is fitted to all but this."""
    norm, all_of_them = scorer.usual_dissimilarity, [*groups, others]
    choices = [all_of_them, *(_without(group, all_of_them) for group in groups)]
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


def _without(group: PositionMoments, all_of_them: Sequence[PositionMoments]) -> list[PositionMoments]:
    return [other for other in all_of_them if other is not group]


def _fitted(moments: Sequence[PositionMoments], like: PositionNorm, by_position: bool) -> PositionNorm:
    norm = PositionNorm().to(like.mean.device)
    norm.fit(moments, by_position)
    return norm


def _log_likelihood(norms: Sequence[PositionNorm], groups: Sequence[PositionMoments]) -> float:
    return sum(norm.log_likelihood(group) for norm, group in zip(norms, groups, strict=True))


def _fit_scores(
    scorer: AnomalyScorer,
    batches: Iterable[Mapping[str, Any]],
    specificity: float,
    device: torch.device | str,
    usual: Mapping[str, _Usual],
) -> None:
    # by file, as evaluation and inference score: a case may have several images
    origin: list[tuple[str, str, str]] = []
    peaks: list[float] = []
    means: list[Tensor] = []
    eases: list[Tensor] = []
    for stack in _stacks(scorer, batches, device):
        norms = usual.get(stack.patient, _Usual(scorer.position, scorer.usual_dissimilarity))
        anomaly_map = scorer.standardised(stack.weighted_sum, stack.foreground, stack.places, norms.position)
        peaks += anomaly_map.flatten(1).amax(dim=1).tolist()
        means.append(scorer.top_means(anomaly_map).double().cpu())
        eases.append(scorer.ease(stack.dissimilarity, stack.foreground, stack.places, norms.dissimilarity))
        origin += [stack[:3]] * len(anomaly_map)
    if not means:
        raise ValueError("Calibration needs held-out normal images; got none.")
    of_slices = torch.cat(means)
    if not torch.isfinite(of_slices).all():
        raise ValueError(
            "Scores of held-out normals are not finite: the training diverged. Lower the learning rate or the "
            "flow's clamp. The model was not saved."
        )
    if scorer.is_standardised:
        scorer.share_mean.copy_(of_slices.mean(dim=0))
        std = of_slices.std(dim=0, correction=0)
        std[std == 0] = 1.0
        scorer.share_std.copy_(std)
    scores = scorer.score_of(of_slices.to(scorer.share_mean), torch.cat(eases)).cpu()
    slices_of_case: dict[tuple[str, str], dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for (patient, file, axis), score in zip(origin, scores, strict=True):
        slices_of_case[patient, file][axis].append(score)
    patients = {patient for patient, _, _ in origin}
    cases = [
        float(scorer.case_score({axis: torch.stack(found) for axis, found in axes.items()}))
        for axes in slices_of_case.values()
    ]
    set_thresholds(scorer, cases, scores, peaks, len(patients), specificity)
    needed = math.ceil(specificity / (1 - specificity) - 1e-9)
    if len(patients) < needed:
        _logger.warning(
            f"Held-out normals of {len(patients)} patients cannot promise a specificity of {specificity:.0%} (it takes "
            f"{needed}): the case threshold promises {int(scorer.case_rank[0]) / (len(patients) + 1):.0%}."
        )

"""Calibration: fits an `AnomalyScorer`'s buffers on normals that the training has not seen."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aeflow_monai.aeflow import AEFlowOutput
from aeflow_monai.scoring import AnomalyScorer

__all__ = ["calibrate", "upper_threshold"]

_logger = logging.getLogger(__name__)


def upper_threshold(scores: Sequence[float] | Tensor, specificity: float) -> float:
    """Threshold that a new normal exceeds with a probability of at most 1 - specificity.

    The k-th smallest of n held-out scores with k = ceil((n + 1) * specificity) holds the promise for any
    distribution, if new normals come from the same one (split conformal prediction). With fewer than
    specificity / (1 - specificity) scores no such k exists, and the largest score is returned.

    Args:
        scores: scores of held-out normals, any unit.
        specificity: in (0, 1).

    Returns:
        The threshold, in the scores' unit.

    Raises:
        ValueError: no scores, or a specificity out of its range.

    Example:
        >>> upper_threshold(list(range(1, 100)), specificity=0.95)
        95.0

    Source: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005.
    """
    if not 0 < specificity < 1:
        raise ValueError(f"specificity has to be in (0, 1); got {specificity}.")
    ordered = sorted(float(score) for score in scores)
    if not ordered:
        raise ValueError("A threshold needs the scores of held-out normals; got none.")
    rank = math.ceil((len(ordered) + 1) * specificity)
    return ordered[min(rank, len(ordered)) - 1]


@torch.no_grad()
def calibrate(
    scorer: AnomalyScorer,
    batches: Iterable[Mapping[str, Any]],
    specificity: float = 0.95,
    device: torch.device | str | None = None,
) -> None:
    """Fill the scorer's buffers: mean and deviation of each term over the foreground, then the three thresholds.

    `case_threshold` and `slice_threshold` are `upper_threshold` of the scores; `map_threshold` is that of each
    slice's highest map value, so that this share of normal slices has an empty mask.

    Args:
        scorer: trained; is set to evaluation mode and back.
        batches: dictionaries with "image" (N, C, H, W) in [0, 1], "case" (N names), possibly "file" (N paths, where
            a case has several images), "axis" (N planes, if there are several) and, if kept, "features" (a list, see
            `Encoder.forward`). Has to be iterable twice and in the same order, and must hold normals only.
        specificity: share of normals that the thresholds should let pass, in (0, 1).
        device: where the scorer lies; that of its buffers if None.

    Raises:
        ValueError: no batches, a specificity out of its range, or statistics that are not finite (the training
            diverged). The scorer's buffers are then as before.
    """
    device = scorer.term_mean.device if device is None else device
    was_training = scorer.training
    before = {name: buffer.clone() for name, buffer in scorer.named_buffers(recurse=False)}
    scorer.eval()
    try:
        if scorer.scoring != "paper":
            _fit_terms(scorer, batches, device)
        _fit_thresholds(scorer, batches, specificity, device)
    except BaseException:
        # new terms with old thresholds would look like a calibrated model
        for name, buffer in before.items():
            scorer.get_buffer(name).copy_(buffer)
        raise
    finally:
        scorer.train(was_training)


def _output(scorer: AnomalyScorer, batch: Mapping[str, Any], device: torch.device | str) -> tuple[AEFlowOutput, Tensor]:
    image = torch.as_tensor(batch["image"]).to(device)
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
        foreground.add(terms[:, (image > 0).any(dim=1).cpu()])
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


def _fit_thresholds(
    scorer: AnomalyScorer,
    batches: Iterable[Mapping[str, Any]],
    specificity: float,
    device: torch.device | str,
) -> None:
    # by file, as evaluation and inference score: a case may have several images
    slices_of_case: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    peaks: list[float] = []
    for batch in batches:
        output, image = _output(scorer, batch, device)
        anomaly_map = scorer.anomaly_map(output, image)
        peaks += anomaly_map.flatten(1).amax(dim=1).tolist()
        files = batch.get("file", batch["case"])
        axes = batch.get("axis", ["axial"] * len(files))
        for case, file, axis, score in zip(
            batch["case"], files, axes, scorer.slice_scores(anomaly_map).tolist(), strict=True
        ):
            slices_of_case[case, file][axis].append(score)
    by_axis = [{axis: torch.tensor(s) for axis, s in axes.items()} for axes in slices_of_case.values()]
    cases = [float(scorer.case_score(scores)) for scores in by_axis]
    if not all(torch.isfinite(s).all() for axes in by_axis for s in axes.values()):
        raise ValueError(
            "Scores of held-out normals are not finite: the training diverged. Lower the learning rate or the "
            "flow's clamp. The model was not saved."
        )
    scorer.case_threshold.fill_(upper_threshold(cases, specificity))
    scorer.slice_threshold.fill_(
        upper_threshold(torch.cat([s for axes in by_axis for s in axes.values()]), specificity)
    )
    scorer.map_threshold.fill_(upper_threshold(peaks, specificity))
    needed = math.ceil(specificity / (1 - specificity) - 1e-9)
    if len(cases) < needed:
        _logger.warning(
            f"{len(cases)} held-out normal cases cannot promise a specificity of {specificity:.0%} (it takes "
            f"{needed}): the case threshold is the largest score among them."
        )

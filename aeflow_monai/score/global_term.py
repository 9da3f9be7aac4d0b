"""The global term: how unusual all of a slice is, by its pooled features, beside what its map says of its places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GlobalTerm", "fit_global_term", "pooled_features"]

_MOST_NUMBERS = 1024  # of a slice, so that the stored matrix stays small, whatever the encoder
# How the term joins a score, its weight and how soft the maximum is, in standard deviations. Chosen on the
# panel's development splits, see docs/results_choices.md: what is local in a volume is in few of its slices.
_OF_IMAGES, _OF_VOLUMES = (3.0, 4.0), (2.0, 1.0)
# From where on a term counts by its logarithm alone, and how sharply that begins, in standard deviations.
_BEND = (1.5, 0.25)
_NEVER = float(torch.finfo(torch.float32).max)  # no term is beyond it
_MOST_NORMALS = 4096  # that are stored, about 10 MB with the default encoder
# Of the mean distance of held-out normals from the nearest one. On the panel the same image has less than 0.001 of it,
# or 0.14 at another size; others have 0.38 or more.
_SAME = 0.2
_LEAST_SPREAD = 0.01  # of distances of normals, in standard deviations of each feature
_AT_ONCE = 1024  # slices that are compared with all normals, which takes memory
_LEAST_PATIENTS = 6  # with fewer normals nothing is known of what else is normal
_PATIENTS_OF_TRAINING = 10.0  # that its mean and covariance count as beside another site's normals; a choice

Normals = Mapping[str, Tensor]


def pooled_features(features: Sequence[Tensor]) -> Tensor:
    """Mean features of the quarters of each slice, of all stages beside each other.

    Args:
        features: of the encoder's stages, each (N, C_i, h_i, w_i).

    Returns:
        (N, channels, 4), or of wide encoders the mean of all of the slice, (N, channels, 1).

    Example:
        >>> tuple(pooled_features([torch.rand(3, 40, 16, 16), torch.rand(3, 112, 8, 8)]).shape)
        (3, 152, 4)
    """
    grid = 2 if 4 * sum(stage.shape[1] for stage in features) <= _MOST_NUMBERS else 1
    half = (torch.float16, torch.bfloat16)
    return torch.cat([_means_of_parts(f.float() if f.dtype in half else f, grid) for f in features], dim=1)


def _means_of_parts(stage: Tensor, grid: int) -> Tensor:
    """Adaptive mean of (N, C, h, w) over grid x grid parts, (N, C, grid * grid)."""
    height, width = (int(length) for length in stage.shape[-2:])
    if height % grid == 0 and width % grid == 0:
        return F.avg_pool2d(stage, (height // grid, width // grid)).flatten(2)
    # parts that overlap by a row or column, which ONNX has no operation for
    rows, columns = ([(n * k // grid, -(-n * (k + 1) // grid)) for k in range(grid)] for n in (height, width))
    parts = [stage[:, :, top:bottom, left:right] for top, bottom in rows for left, right in columns]
    return torch.stack([part.mean(dim=(2, 3)) for part in parts], dim=2)


class GlobalTerm(nn.Module):
    """How far pooled features lie from those of normals, in standard deviations of normals.

    It is the mean of three distances, each standardised, and standardised again: that of Mahalanobis from the mean of
    normals, that from the nearest normal, and that from the nearest normal by the means of all of the slice, wherever
    things lie in it. The first sees what lies beside the main directions of normals, the others what lies between their
    kinds. The covariance is shrunk (Ledoit, Wolf), since normals may be fewer than features.

    Before `fit` nothing is known. The buffers hold mean and deviation of each feature, what whitens the features, the
    normals (of many, some), for each distance what is taken off it and what it is divided by, how the term joins a
    score (the `bend` beyond which it counts less, its weight, and the `softness` of the maximum), and whether the
    normals are those of a training. A term that was `moved` to another site keeps what it was fitted to as well: mean,
    what whitens, and how many of the normals, the first ones, are of the training.

    Example:
        >>> term = GlobalTerm()
        >>> term.fit(torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0)))
        >>> bool(term(torch.full((1, 3, 4), 9.0)) > term(torch.zeros(1, 3, 4)))
        True

    Source: Rippel, Mertens, Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly
    Detection", ICPR 2020; Ledoit, Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004;
    Bergman, Cohen, Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020.
    """

    mean: Tensor
    fitted_mean: Tensor
    std: Tensor
    whitening: Tensor
    fitted_whitening: Tensor
    normals: Tensor
    n_fitted: Tensor
    wholes: Tensor
    squares: Tensor
    unit: Tensor
    bend: Tensor
    weight: Tensor
    softness: Tensor
    is_of_training: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("fitted_mean", torch.zeros(0))
        self.register_buffer("std", torch.zeros(0))
        self.register_buffer("whitening", torch.zeros(0, 0))
        self.register_buffer("fitted_whitening", torch.zeros(0, 0))  # empty if the term has not moved
        self.register_buffer("n_fitted", torch.tensor(0))
        self.register_buffer("normals", torch.zeros(0, 0, 1))  # standardised: (m, channels, parts)
        # what of them does not depend on a slice: means (m, channels), and squares of their lengths and of these (2, m)
        self.register_buffer("wholes", torch.zeros(0, 0), persistent=False)
        self.register_buffer("squares", torch.zeros(2, 0), persistent=False)
        self.register_buffer("unit", _no_unit())
        self.register_buffer("bend", torch.tensor(_BEND))
        self.register_buffer("weight", torch.tensor(_OF_IMAGES[0]))
        self.register_buffer("softness", torch.tensor(_OF_IMAGES[1]))
        self.register_buffer("is_of_training", torch.tensor(False))

    @property
    def is_known(self) -> bool:
        """Whether it was fitted."""
        return self.mean.numel() > 0

    def forward(self, pooled: Tensor) -> Tensor:
        """How unusual slices are by their `pooled_features`: (n, channels, parts) to (n,)."""
        found: Tensor = ((self.distances(pooled) - self.unit[:, 0]) / self.unit[:, 1]).sum(dim=1)
        return found

    def joined(self, map_scores: Tensor, terms: Tensor) -> Tensor:
        """Soft maximum of what maps and terms say, (n,) each; see `formula`.

        A term that is far beyond those of normals tells of another acquisition as often as of disease, so from the
        `bend` on it counts by its logarithm. Then the maps tell apart images that are all unusual.
        """
        start, sharpness = self.bend
        terms = terms.to(map_scores)
        counted = terms.minimum(start) + sharpness * torch.log1p((terms - start).clamp_min(0) / sharpness)
        more = (self.weight * counted - map_scores) / self.softness
        # the logarithm of the sum of both exponentials, in operations that ONNX has
        return map_scores + self.softness * (F.softplus(more) - math.log(2))

    def formula(self, map_score: str, term: str) -> str:
        """How `joined` computes a score, of what is called so.

        Example:
            >>> GlobalTerm().formula("map", "g")
            '4 * log((exp(map / 4) + exp(3 * t / 4)) / 2) with t = min(g, 1.5) + 0.25 * log(1 + max(g - 1.5, 0) / 0.25)'
        """
        weight, softness = float(self.weight), float(self.softness)
        start, sharpness = self.bend.tolist()
        is_bent = start < _NEVER
        counted = "t" if is_bent else term
        if softness == 1:
            joined = f"log((exp({map_score}) + exp({weight:g} * {counted})) / 2)"
        else:
            parts = f"exp({map_score} / {softness:g}) + exp({weight:g} * {counted} / {softness:g})"
            joined = f"{softness:g} * log(({parts}) / 2)"
        if not is_bent:
            return joined
        beyond = f"{sharpness:g} * log(1 + max({term} - {start:g}, 0) / {sharpness:g})"
        return f"{joined} with t = min({term}, {start:g}) + {beyond}"

    def distances(self, pooled: Tensor) -> Tensor:
        """Distances of slices from normals: (n, channels, parts) to (n, 3).

        Of one part there are two, and of a model that stores no normals there is one.
        """
        standard = (pooled.flatten(1) - self.mean) / self.std
        found = [torch.linalg.vector_norm(standard @ self.whitening, dim=1)]
        if len(self.normals):
            found.append(_nearest(standard, self.normals.flatten(1), self.squares[0]))
            if pooled.shape[2] > 1:
                found.append(_nearest(standard.view(pooled.shape).mean(dim=2), self.wholes, self.squares[1]))
        return torch.stack(found, dim=1)

    def knows(self, pooled: Tensor) -> Tensor:
        """Which slices have the features of one that it was fitted to: (n, channels, parts) to (n,), boolean.

        Of these the distance from the nearest normal is next to nothing. At most 4096 slices of a training are stored.
        """
        n_fitted = int(self.n_fitted)
        if not n_fitted:
            return torch.zeros(len(pooled), dtype=torch.bool)
        standard = (pooled.flatten(1) - self.fitted_mean) / self.std
        fitted = self.normals[:n_fitted].flatten(1)
        return (_nearest(standard, fitted, self.squares[0, :n_fitted]) < _SAME * self.unit[1, 0]).cpu()

    def fit(self, pooled: Tensor) -> None:
        """Take normals (n, channels, parts) with their mean and covariance; the unit stays as it is."""
        values = pooled.double().cpu().flatten(1)
        mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
        std[std <= 1e-6 * mean.abs() + 1e-12] = 1.0  # a feature that never changed
        standard = (values - mean) / std
        normals = _some(standard).view(-1, *pooled.shape[1:])
        found = (mean, std, _whitening_of(_covariance_of(standard)), normals)
        self.mean, self.std, self.whitening, self.normals = (each.to(self.unit) for each in found)
        self.fitted_mean, self.fitted_whitening = self.mean.clone(), torch.zeros(0, 0).to(self.unit)
        self.n_fitted.fill_(len(normals))
        self._prepare()

    def moved(self, pooled: Tensor, n_patients: int) -> GlobalTerm:
        """The same for another site, whose normals (n, channels, parts) stand beside those of the training.

        Mean and covariance move towards the site's, the more so the more patients it has, and the training's normals
        with the mean. Wherever the term has moved before: the same normals, given twice, would count twice.
        """
        moved = GlobalTerm().to(self.mean.device)
        moved.load_state_dict(self.state_dict())
        if not len(pooled):
            return moved
        share = n_patients / (n_patients + _PATIENTS_OF_TRAINING)
        values, std = pooled.double().cpu().flatten(1), self.std.double().cpu()
        own_mean = values.mean(dim=0)
        mean = self.fitted_mean.double().cpu().lerp(own_mean, share)
        fitted = self.fitted_whitening if self.fitted_whitening.numel() else self.whitening
        covariance = torch.cholesky_inverse(fitted.double().cpu()).lerp(
            _covariance_of((values - own_mean) / std), share
        )
        moved.mean, moved.whitening = (each.to(self.mean) for each in (mean, _whitening_of(covariance)))
        moved.fitted_whitening = fitted.clone()
        if self.n_fitted:  # an earlier version stored no normals
            own = _some((values - mean) / std).view(-1, *pooled.shape[1:]).to(self.normals)
            moved.normals = torch.cat([self.normals[: int(self.n_fitted)], own])
            moved._prepare()
        return moved

    def set_unit(self, distances: Tensor) -> None:
        """Standardise by the `distances` of normals."""
        mean = distances.mean(dim=0)
        # of normals that stand twice, distances are nothing but rounding
        std = distances.std(dim=0, correction=0).clamp_min(_LEAST_SPREAD * math.sqrt(len(self.mean)))
        spread = ((distances - mean) / std).sum(dim=1).std(correction=0)  # together they are standardised again
        self.unit = torch.stack([mean, std * (spread if spread > 0 else 1.0)], dim=1).to(self.unit)

    def forget(self) -> None:
        """Know nothing again."""
        self.load_state_dict(GlobalTerm().state_dict())

    def _prepare(self) -> None:
        self.wholes = self.normals.mean(dim=2)
        self.squares = torch.stack([each.flatten(1).square().sum(dim=1) for each in (self.normals, self.wholes)])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take the sizes from the state, whichever version it is of."""
        state = {name: state_dict[prefix + name] for name in self._buffers if prefix + name in state_dict}
        for name, stored in _upgraded(state).items():
            state_dict[prefix + name] = stored
            setattr(self, name, getattr(self, name).new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._prepare()


def _upgraded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a term of any version, by the buffers' names, with all that this version stores.

    A state of 0.1.0 has no term: nothing is known of it then. On the way to 0.2.0 states gained

    - `normals`, `weight`, and a `unit` of several distances. A state without them has the distance from the mean alone,
      whose unit is a pair, (2,), and its term joins scores with a weight of 1.
    - `softness`. A state without it has one of 1.
    - `bend`. In a state without it a term counts in full, however large it is.
    - `fitted_mean`, `fitted_whitening` and `n_fitted`. Where the first is missing, the state is taken for one that has
      not moved. Then only the mean moved, and all normals are of the training.
    - channels and parts of `normals`, which were joined.
    - `is_of_training`. A term without it moves to another site, as one that was fitted to normals of a training does.
    """
    of_earlier = {name: torch.tensor(1.0) for name in ("weight", "softness")} | {"is_of_training": torch.tensor(True)}
    of_earlier["bend"] = torch.tensor([_NEVER, 1.0])
    upgraded = {**GlobalTerm().state_dict(), **of_earlier, **state}
    if len(upgraded["fitted_mean"]) != len(upgraded["mean"]):
        upgraded["fitted_mean"] = upgraded["mean"].clone()
    if "n_fitted" not in state:
        upgraded["n_fitted"] = torch.tensor(len(upgraded["normals"]))
    if upgraded["unit"].ndim == 1:
        upgraded["unit"] = upgraded["unit"][None]
    if upgraded["normals"].ndim == 2:
        parts = 4 if len(upgraded["unit"]) == 3 else 1  # of one part there is no third distance
        m, d = upgraded["normals"].shape
        upgraded["normals"] = upgraded["normals"].view(m, d // parts, parts)
    return upgraded


def _no_unit() -> Tensor:
    return torch.tensor([[0.0, 1.0]] * 3)


def _covariance_of(standard: Tensor) -> Tensor:
    """Shrunk covariance of what is standardised, (n, d)."""
    covariance, _ = ledoit_wolf(standard.numpy(), assume_centered=True)
    return torch.from_numpy(covariance)


def _whitening_of(covariance: Tensor) -> Tensor:
    """The triangle that whitens features of a covariance: its product with its own transpose is the precision."""
    precision = np.linalg.inv(covariance.numpy() + 1e-6 * np.eye(len(covariance)))
    return torch.from_numpy(np.linalg.cholesky(precision))


def _nearest(slices: Tensor, normals: Tensor, squares: Tensor) -> Tensor:
    """Distance of each of the slices (n, d) from the nearest of the normals (m, d), in operations that ONNX has.

    The squares of the normals' lengths are (m,).
    """
    both = slices.square().sum(dim=1, keepdim=True) + squares
    return (both - 2 * slices @ normals.T).amin(dim=1).clamp_min(0).sqrt()


def _some(normals: Tensor) -> Tensor:
    """At most `_MOST_NORMALS` of the normals, by chance: their order may have a rhythm, such as left and right."""
    chosen = torch.randperm(len(normals), generator=torch.Generator().manual_seed(0))[:_MOST_NORMALS]
    return normals[chosen.sort().values]


def fit_global_term(
    term: GlobalTerm,
    held_out: Sequence[Normals],
    fitted: Sequence[Normals],
    copies: Sequence[Normals] = (),
    of_volumes: bool = False,
) -> list[GlobalTerm]:
    """Fit a term to normals of a training, and for each group of held-out ones give what they are compared with.

    Held-out normals are not among what the term is fitted to: compared with themselves, now or in a later calibration,
    they would lie too near. Where normals of a training are of too few patients, it is fitted to all; then each group
    is compared with the others. The unit is that of all normals, each compared with others than itself. Without normals
    of a training, a term that is of one is moved to the held-out normals: so it is on another site.

    Copies of the training's normals, as another acquisition might show them, are among what the term is fitted to. They
    set no unit, which is that of normals as they are.

    Args:
        term: is changed.
        held_out: of each group, from the patient to the `pooled_features` of all slices.
        fitted: likewise of what the method was fitted on, in as many groups.
        copies: likewise of copies of these, in the same groups; none if empty.
        of_volumes: the normals are slices of volumes, and no 2D images. A term that moves stays what it was.

    Returns:
        As many as there are groups; none if the normals are of too few patients, and the term knows nothing then.

    Raises:
        ValueError: features that are not finite.
    """
    groups = [{**some, **others} for some, others in zip(held_out, fitted, strict=True)]
    if len({patient for group in groups for patient in group}) < _LEAST_PATIENTS:
        term.forget()
        return []
    if not torch.isfinite(_joined(groups)).all():
        raise ValueError("Features of normals are not finite: the encoder's weights or an image hold NaN.")
    of_training = len({patient for group in fitted for patient in group}) >= _LEAST_PATIENTS
    if any(fitted) or not (term.is_known and term.is_of_training):
        normals, fit = fitted if of_training else groups, partial(_fitted_to, term, of_training, of_volumes)
    else:
        normals, fit = held_out, partial(_moved_to, term)
    added = copies if of_training and copies else [{}] * len(normals)
    pairs = [*zip(normals, added, strict=True)]

    def fitted_but(left: int | None) -> GlobalTerm:
        return fit([each for number, pair in enumerate(pairs) if number != left for each in pair])

    whole = fitted_but(None)
    without = [fitted_but(number) for number in range(len(pairs))]
    compared = [*zip(without, normals, strict=True)]
    if of_training:
        without = [whole] * len(groups)
        compared += zip(without, held_out, strict=True)
    distances = torch.cat(
        [
            own.distances(part.to(term.unit))
            for own, group in compared
            for part in torch.split(_joined([group]), _AT_ONCE)
            if group
        ]
    )
    for each in (*without, whole):
        each.set_unit(distances)
    term.load_state_dict(whole.state_dict())
    return without


def _joined(groups: Sequence[Normals]) -> Tensor:
    found = [pooled for group in groups for pooled in group.values()]
    return torch.cat(found) if found else torch.zeros(0, 0, 1)


def _fitted_to(like: GlobalTerm, is_of_training: bool, of_volumes: bool, groups: Sequence[Normals]) -> GlobalTerm:
    found = GlobalTerm().to(like.unit.device)
    found.fit(_joined(groups))
    found.is_of_training.fill_(is_of_training)
    for buffer, number in zip((found.weight, found.softness), _OF_VOLUMES if of_volumes else _OF_IMAGES, strict=True):
        buffer.fill_(number)
    return found


def _moved_to(term: GlobalTerm, groups: Sequence[Normals]) -> GlobalTerm:
    return term.moved(_joined(groups).to(term.unit), sum(map(len, groups)))

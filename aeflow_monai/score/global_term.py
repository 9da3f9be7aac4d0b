"""The global term: how unusual all of a slice is, by its pooled features, beside what its map says of its places."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GlobalTerm"]

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
_PATIENTS_OF_TRAINING = 10.0  # that its mean and covariance count as beside another site's normals; a choice


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

    def join_as(self, of_volumes: bool) -> None:
        """Join scores by the weight and softness of slices of volumes, or of 2D images."""
        weight, softness = _OF_VOLUMES if of_volumes else _OF_IMAGES
        self.weight.fill_(weight)
        self.softness.fill_(softness)

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

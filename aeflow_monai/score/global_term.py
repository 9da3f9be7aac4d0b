"""The global term: how unusual a slice is as a whole, by its pooled features, in addition to its anomaly map."""

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

# Weight of the term and softness of the maximum by which it joins a score, in standard deviations. Chosen on the
# panel's development splits, see docs/results_choices.md: a local change of a volume is in few of its slices.
_OF_IMAGES, _OF_VOLUMES = (3.0, 4.0), (2.0, 1.0)
# Value from which on a term counts logarithmically, and the sharpness of this bend, in standard deviations.
_BEND = (1.5, 0.25)
_NEVER = float(torch.finfo(torch.float32).max)  # no term exceeds it
_MOST_NORMALS = 4096  # stored at most, about 10 MB with the default encoder
# Relative to the mean distance of held-out normals from their nearest normal. On the panel the same image has less than
# 0.001, or 0.14 at another size; other images have 0.38 or more.
_SAME = 0.2
_LEAST_SPREAD = 0.01  # of distances of normals, in standard deviations of each feature
_PATIENTS_OF_TRAINING = 10.0  # weight of the training's mean and covariance beside another site's normals; a choice


class GlobalTerm(nn.Module):
    """Distance of pooled features from those of normals, in standard deviations of normals.

    It is the standardised mean of three standardised distances: the Mahalanobis distance from the mean of normals, the
    distance from the nearest normal, and the distance from the nearest normal by the features averaged over the whole
    slice, wherever things lie in it. The first detects deviations outside the main directions of normals, the others
    those between clusters of normals. The covariance is shrunk (Ledoit, Wolf), since there may be fewer normals than
    features.

    Before `fit` the term is unknown. The buffers hold mean and standard deviation of each feature, the whitening
    matrix, the normals (a random subset of many), offset and divisor of each distance, how the term joins a score (the
    `bend` beyond which it counts less, its weight, and the `softness` of the maximum), and whether the normals are
    those of a training. A term that was `moved` to another site also keeps the mean and the whitening matrix that it
    was fitted with, and how many of the normals, the first ones, are of the training.

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
        # precomputed from the normals: means (m, channels), and squared norms of the normals and of these means (2, m)
        self.register_buffer("wholes", torch.zeros(0, 0), persistent=False)
        self.register_buffer("squares", torch.zeros(2, 0), persistent=False)
        self.register_buffer("unit", _no_unit())
        self.register_buffer("bend", torch.tensor(_BEND))
        self.register_buffer("weight", torch.tensor(_OF_IMAGES[0]))
        self.register_buffer("softness", torch.tensor(_OF_IMAGES[1]))
        self.register_buffer("is_of_training", torch.tensor(False))

    @property
    def is_known(self) -> bool:
        """Return whether the term was fitted."""
        return self.mean.numel() > 0

    def forward(self, pooled: Tensor) -> Tensor:
        """Compute how unusual slices are as a whole from their `pooled_features`: (n, channels, parts) to (n,)."""
        found: Tensor = ((self.distances(pooled) - self.unit[:, 0]) / self.unit[:, 1]).sum(dim=1)
        return found

    def joined(self, map_scores: Tensor, terms: Tensor) -> Tensor:
        """Compute the soft maximum of map scores and terms, (n,) each; see `formula`.

        A term far above those of normals indicates another acquisition as often as disease, so beyond the `bend` it
        counts logarithmically. The maps then still rank images that are all unusual.
        """
        start, sharpness = self.bend
        terms = terms.to(map_scores)
        counted = terms.minimum(start) + sharpness * torch.log1p((terms - start).clamp_min(0) / sharpness)
        more = (self.weight * counted - map_scores) / self.softness
        # logsumexp of both, in operations that ONNX has
        return map_scores + self.softness * (F.softplus(more) - math.log(2))

    def formula(self, map_score: str, term: str) -> str:
        """Return the formula of `joined` as text, with these names of the two scores.

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
        """Compute the distances of slices from normals: (n, channels, parts) to (n, 3).

        With a single part there are two distances, and for a model without stored normals one.
        """
        standard = (pooled.flatten(1) - self.mean) / self.std
        found = [torch.linalg.vector_norm(standard @ self.whitening, dim=1)]
        if len(self.normals):
            found.append(_nearest(standard, self.normals.flatten(1), self.squares[0]))
            if pooled.shape[2] > 1:
                found.append(_nearest(standard.view(pooled.shape).mean(dim=2), self.wholes, self.squares[1]))
        return torch.stack(found, dim=1)

    def knows(self, pooled: Tensor) -> Tensor:
        """Return which slices have the features of a normal it was fitted to: (n, channels, parts) to (n,), boolean.

        Their distance from the nearest normal is almost 0. At most 4096 slices of a training are stored.
        """
        n_fitted = int(self.n_fitted)
        if not n_fitted:
            return torch.zeros(len(pooled), dtype=torch.bool)
        standard = (pooled.flatten(1) - self.fitted_mean) / self.std
        fitted = self.normals[:n_fitted].flatten(1)
        return (_nearest(standard, fitted, self.squares[0, :n_fitted]) < _SAME * self.unit[1, 0]).cpu()

    def fit(self, pooled: Tensor) -> None:
        """Fit mean and covariance to normals (n, channels, parts) and store them; the unit is not changed."""
        values = pooled.double().cpu().flatten(1)
        mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
        std[std <= 1e-6 * mean.abs() + 1e-12] = 1.0  # a constant feature
        standard = (values - mean) / std
        normals = _some(standard).view(-1, *pooled.shape[1:])
        found = (mean, std, _whitening_of(_covariance_of(standard)), normals)
        self.mean, self.std, self.whitening, self.normals = (each.to(self.unit) for each in found)
        self.fitted_mean, self.fitted_whitening = self.mean.clone(), torch.zeros(0, 0).to(self.unit)
        self.n_fitted.fill_(len(normals))
        self._prepare()

    def moved(self, pooled: Tensor, n_patients: int) -> GlobalTerm:
        """Return a copy for another site, with the site's normals (n, channels, parts) beside those of the training.

        Mean and covariance are shifted towards the site's, more so the more patients it has, and the training's normals
        with the mean. It always starts from the training's statistics, even if the term was moved before: otherwise
        normals given twice would count twice.
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
        """Set the unit by the `distances` of normals."""
        mean = distances.mean(dim=0)
        # distances of duplicated normals are rounding errors only
        std = distances.std(dim=0, correction=0).clamp_min(_LEAST_SPREAD * math.sqrt(len(self.mean)))
        spread = ((distances - mean) / std).sum(dim=1).std(correction=0)  # the sum is standardised again
        self.unit = torch.stack([mean, std * (spread if spread > 0 else 1.0)], dim=1).to(self.unit)

    def join_as(self, of_volumes: bool) -> None:
        """Set weight and softness to those for slices of volumes or for 2D images."""
        weight, softness = _OF_VOLUMES if of_volumes else _OF_IMAGES
        self.weight.fill_(weight)
        self.softness.fill_(softness)

    def forget(self) -> None:
        """Reset the term to unknown."""
        self.load_state_dict(GlobalTerm().state_dict())

    def _prepare(self) -> None:
        self.wholes = self.normals.mean(dim=2)
        self.squares = torch.stack([each.flatten(1).square().sum(dim=1) for each in (self.normals, self.wholes)])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take the buffers' sizes from the state, which may be of any version."""
        state = {name: state_dict[prefix + name] for name in self._buffers if prefix + name in state_dict}
        for name, stored in _upgraded(state).items():
            state_dict[prefix + name] = stored
            setattr(self, name, getattr(self, name).new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._prepare()


def _upgraded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a term of any version, with all buffers of this version.

    A state of 0.1.0 has no term, which is then unknown. Before 0.2.0, states gained in turn

    - `normals`, `weight`, and a `unit` of several distances. Without them there is only the distance from the mean,
      with a unit of shape (2,), and a weight of 1.
    - `softness`. Without it, it is 1.
    - `bend`. Without it, a term counts in full, however large it is.
    - `fitted_mean`, `fitted_whitening` and `n_fitted`. Without the first, the term is assumed not to have moved.
      Without the others, only the mean has moved, and all normals are of the training.
    - separate dimensions for channels and parts of `normals`.
    - `is_of_training`. Without it, the term can be moved to another site, like one fitted to a training's normals.
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
        parts = 4 if len(upgraded["unit"]) == 3 else 1  # with one part there is no third distance
        m, d = upgraded["normals"].shape
        upgraded["normals"] = upgraded["normals"].view(m, d // parts, parts)
    return upgraded


def _no_unit() -> Tensor:
    return torch.tensor([[0.0, 1.0]] * 3)


def _covariance_of(standard: Tensor) -> Tensor:
    """Return the shrunk covariance of standardised features, (n, d)."""
    covariance, _ = ledoit_wolf(standard.numpy(), assume_centered=True)
    return torch.from_numpy(covariance)


def _whitening_of(covariance: Tensor) -> Tensor:
    """Return the triangular whitening matrix of a covariance: its product with its own transpose is the precision."""
    precision = np.linalg.inv(covariance.numpy() + 1e-6 * np.eye(len(covariance)))
    return torch.from_numpy(np.linalg.cholesky(precision))


def _nearest(slices: Tensor, normals: Tensor, squares: Tensor) -> Tensor:
    """Compute the distance of each slice (n, d) from its nearest normal (m, d), in operations that ONNX has.

    The squared norms of the normals are (m,).
    """
    both = slices.square().sum(dim=1, keepdim=True) + squares
    return (both - 2 * slices @ normals.T).amin(dim=1).clamp_min(0).sqrt()


def _some(normals: Tensor) -> Tensor:
    """Return at most `_MOST_NORMALS` normals, drawn at random: their order may be periodic, such as left and right."""
    chosen = torch.randperm(len(normals), generator=torch.Generator().manual_seed(0))[:_MOST_NORMALS]
    return normals[chosen.sort().values]

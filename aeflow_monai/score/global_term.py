"""The global term: how unusual all of a slice is, by its pooled features, beside what its map says of its places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GlobalTerm", "fit_global_term", "pooled_features"]

_MOST_NUMBERS = 1024  # of a slice, so that the stored matrix stays small, whatever the encoder
_WEIGHT = 2.0  # chosen on the panel's development splits, see docs/results.md
_MOST_NORMALS = 4096  # that are stored, about 10 MB with the default encoder
_SAME = 1e-3  # standard deviations per feature: so near lies only the same slice, computed twice
_AT_ONCE = 1024  # slices that are compared with all normals in double precision
_LEAST_PATIENTS = 6  # with fewer normals nothing is known of what else is normal
_PATIENTS_OF_STORED_MEAN = 10.0  # weight of the mean of the training where a new site has normals of its own; a choice

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

    It is the mean of three distances, each standardised: that of Mahalanobis from the mean of normals, that from the
    nearest normal, and that from the nearest normal by the means of all of the slice, wherever things lie in it. The
    first sees what lies beside the main directions of normals, the others what lies between their kinds. The covariance
    is shrunk (Ledoit, Wolf), since normals may be fewer than features. Before `fit` nothing is
    known. The buffers hold mean and deviation of each feature, what whitens them, the normals (of many, some), for each
    distance what is taken off it and what it is divided by, and the weight of the term where it joins a score.

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
    std: Tensor
    whitening: Tensor
    normals: Tensor
    unit: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("std", torch.zeros(0))
        self.register_buffer("whitening", torch.zeros(0, 0))
        self.register_buffer("normals", torch.zeros(0, 0))  # standardised
        self.register_buffer("unit", _no_unit())
        self.register_buffer("weight", torch.tensor(_WEIGHT))

    @property
    def is_known(self) -> bool:
        """Whether it was fitted."""
        return self.mean.numel() > 0

    def forward(self, pooled: Tensor) -> Tensor:
        """How unusual slices are by their `pooled_features`: (n, channels, parts) to (n,)."""
        found: Tensor = ((self.distances(pooled) - self.unit[:, 0]) / self.unit[:, 1]).sum(dim=1)
        return found

    def distances(self, pooled: Tensor) -> Tensor:
        """Distances of slices from normals: (n, channels, parts) to (n, 3), or (n, 1) if no normals are stored."""
        standard = self._standardised(pooled)
        of_mean = torch.linalg.vector_norm(standard @ self.whitening, dim=1)
        if not len(self.normals):
            return torch.stack([of_mean], dim=1)
        of_whole, normals_whole = (each.reshape(-1, *pooled.shape[1:]).mean(dim=2) for each in (standard, self.normals))
        return torch.stack([of_mean, _nearest(standard, self.normals), _nearest(of_whole, normals_whole)], dim=1)

    def fit(self, pooled: Tensor) -> None:
        """Take normals (n, channels, parts) with their mean and covariance; the unit stays as it is."""
        values = pooled.double().cpu().flatten(1)
        mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
        std[std <= 1e-6 * mean.abs() + 1e-12] = 1.0  # a feature that never changed
        standard = (values - mean) / std
        covariance, _ = ledoit_wolf(standard.numpy(), assume_centered=True)
        precision = np.linalg.inv(covariance + 1e-6 * np.eye(len(covariance)))
        self._set(mean, std, torch.from_numpy(np.linalg.cholesky(precision)), _some(standard))

    def moved(self, pooled: Tensor, n_patients: int) -> GlobalTerm:
        """The same about a mean that moves towards that of the normals of another site."""
        share = n_patients / (n_patients + _PATIENTS_OF_STORED_MEAN)
        other = GlobalTerm().to(self.mean.device)
        other.load_state_dict(self.state_dict())
        if len(pooled):
            other.mean.lerp_(pooled.double().flatten(1).mean(dim=0).to(self.mean), share)
        return other

    def forget_normals(self, pooled: Tensor) -> None:
        """Take slices from the normals that are stored: compared with itself, each would lie too near."""
        if len(self.normals) and len(pooled):
            standard = self._standardised(pooled.double().to(self.mean.device))
            nearest = torch.stack(
                [torch.cdist(part, self.normals.double()).amin(dim=0) for part in torch.split(standard, _AT_ONCE)]
            )
            self.normals = self.normals[nearest.amin(dim=0) > _SAME * math.sqrt(len(self.mean))]

    def set_unit(self, distances: Tensor) -> None:
        """Standardise by the `distances` of normals."""
        mean, std = distances.mean(dim=0), distances.std(dim=0, correction=0)
        std = torch.where(std > 0, std, 1.0)
        spread = ((distances - mean) / std).sum(dim=1).std(correction=0)  # together they are standardised again
        self.unit = torch.stack([mean, std * (spread if spread > 0 else 1.0)], dim=1).to(self.unit)

    def forget(self) -> None:
        """Know nothing again."""
        nothing, nowhere = self.mean.new_zeros(0), self.mean.new_zeros(0, 0)
        self._set(nothing, nothing, nowhere, nowhere)
        self.unit = _no_unit().to(self.unit)

    def _standardised(self, pooled: Tensor) -> Tensor:
        return (pooled.flatten(1) - self.mean) / self.std

    def _set(self, *found: Tensor) -> None:
        self.mean, self.std, self.whitening, self.normals = (each.to(self.unit) for each in found)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take the sizes from the state; what a model of an earlier version does not have is not known."""
        state_dict.setdefault(prefix + "weight", torch.tensor(1.0))
        for name, nothing in GlobalTerm().state_dict().items():
            stored = state_dict.setdefault(prefix + name, nothing)
            if name == "unit" and stored.ndim == 1:  # of one distance
                stored = state_dict[prefix + name] = stored[None]
            setattr(self, name, getattr(self, name).new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _no_unit() -> Tensor:
    return torch.tensor([[0.0, 1.0]] * 3)


def _nearest(slices: Tensor, normals: Tensor) -> Tensor:
    """Distance of each of the slices (n, d) from the nearest of the normals (m, d), in operations that ONNX has."""
    squares = slices.square().sum(dim=1, keepdim=True) + normals.square().sum(dim=1)
    return (squares - 2 * slices @ normals.T).amin(dim=1).clamp_min(0).sqrt()


def _some(normals: Tensor) -> Tensor:
    """So many of the normals as are stored, evenly taken."""
    return normals[:: -(-len(normals) // _MOST_NORMALS)]


def fit_global_term(term: GlobalTerm, held_out: Sequence[Normals], fitted: Sequence[Normals]) -> list[GlobalTerm]:
    """Fit a term to normals, and for each group of held-out ones give one that is fitted to all but this.

    The unit is that of all normals, each compared with the other groups: compared with itself, a normal would lie too
    near. Without normals of a training, a term that is known keeps its covariance, and its mean and unit move to the
    held-out normals: so it is on another site.

    Args:
        term: is changed.
        held_out: of each group, from the patient to the `pooled_features` of all slices.
        fitted: likewise of what the method was fitted on, in as many groups.

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
    moves = term.is_known and not any(fitted)
    if moves:
        term.forget_normals(_joined(groups))
    without = [_fitted(term, [group for group in groups if group is not left], moves) for left in groups]
    distances = torch.cat(
        [own.distances(_joined([group]).to(term.unit)) for own, group in zip(without, groups, strict=True) if group]
    )
    whole = _fitted(term, groups, moves)
    for each in (*without, whole):
        each.set_unit(distances)
    term.load_state_dict(whole.state_dict())
    return without


def _joined(groups: Sequence[Normals]) -> Tensor:
    return torch.cat([pooled for group in groups for pooled in group.values()])


def _fitted(term: GlobalTerm, groups: Sequence[Normals], moves: bool) -> GlobalTerm:
    pooled = _joined(groups).to(term.unit)
    if moves:
        return term.moved(pooled, sum(map(len, groups)))
    found = GlobalTerm().to(term.unit.device)
    found.fit(pooled)
    return found

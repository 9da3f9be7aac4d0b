"""The global term: how unusual all of a slice is, by its pooled features, beside what its map says of its places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GlobalTerm", "fit_global_term", "pooled_features"]

_MOST_NUMBERS = 1024  # of a slice, so that the stored matrix stays small, whatever the encoder
_LEAST_PATIENTS = 6  # with fewer normals nothing is known of what else is normal
_PATIENTS_OF_STORED_MEAN = 10.0  # weight of the mean of the training where a new site has normals of its own; a choice

Normals = Mapping[str, Tensor]


def pooled_features(features: Sequence[Tensor]) -> Tensor:
    """Mean features of the quarters of each slice, of all stages beside each other.

    Args:
        features: of the encoder's stages, each (N, C_i, h_i, w_i).

    Returns:
        (N, 4 * channels), or of wide encoders the mean of all of the slice, (N, channels).

    Example:
        >>> tuple(pooled_features([torch.rand(3, 40, 16, 16), torch.rand(3, 112, 8, 8)]).shape)
        (3, 608)
    """
    grid = 2 if 4 * sum(stage.shape[1] for stage in features) <= _MOST_NUMBERS else 1
    half = (torch.float16, torch.bfloat16)
    return torch.cat([_means_of_parts(f.float() if f.dtype in half else f, grid) for f in features], dim=1)


def _means_of_parts(stage: Tensor, grid: int) -> Tensor:
    """Adaptive mean of (N, C, h, w) over grid x grid parts, (N, C * grid * grid)."""
    height, width = (int(length) for length in stage.shape[-2:])
    if height % grid == 0 and width % grid == 0:
        return F.avg_pool2d(stage, (height // grid, width // grid)).flatten(1)
    # parts that overlap by a row or column, which ONNX has no operation for
    rows, columns = ([(n * k // grid, -(-n * (k + 1) // grid)) for k in range(grid)] for n in (height, width))
    parts = [stage[:, :, top:bottom, left:right] for top, bottom in rows for left, right in columns]
    return torch.stack([part.mean(dim=(2, 3)) for part in parts], dim=2).flatten(1)


class GlobalTerm(nn.Module):
    """Mahalanobis distance of pooled features from those of normals, in standard deviations of normals.

    The covariance is shrunk (Ledoit, Wolf), since normals may be fewer than features. Before `fit` nothing is known.
    The buffers hold mean and deviation of each feature, what whitens them, and mean and deviation of the distances.

    Example:
        >>> term = GlobalTerm()
        >>> term.fit(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
        >>> bool(term(torch.full((1, 4), 9.0)) > term(torch.zeros(1, 4)))
        True

    Source: Rippel, Mertens, Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly
    Detection", ICPR 2020; Ledoit, Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
    """

    mean: Tensor
    std: Tensor
    whitening: Tensor
    unit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("std", torch.zeros(0))
        self.register_buffer("whitening", torch.zeros(0, 0))
        self.register_buffer("unit", torch.tensor([0.0, 1.0]))

    @property
    def is_known(self) -> bool:
        """Whether it was fitted."""
        return self.mean.numel() > 0

    def forward(self, pooled: Tensor) -> Tensor:
        """How unusual slices are by their `pooled_features`: (n, d) to (n,)."""
        white = ((pooled - self.mean) / self.std) @ self.whitening
        distance: Tensor = torch.linalg.vector_norm(white, dim=1)
        return (distance - self.unit[0]) / self.unit[1]

    def fit(self, pooled: Tensor) -> None:
        """Take mean and covariance from normals (n, d); the unit stays as it is."""
        values = pooled.double().cpu()
        mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
        std[std <= 1e-6 * mean.abs() + 1e-12] = 1.0  # a feature that never changed
        covariance, _ = ledoit_wolf(((values - mean) / std).numpy(), assume_centered=True)
        precision = np.linalg.inv(covariance + 1e-6 * np.eye(len(covariance)))
        self._set(mean, std, torch.from_numpy(np.linalg.cholesky(precision)))

    def moved(self, pooled: Tensor, n_patients: int) -> GlobalTerm:
        """The same about a mean that moves towards that of normals (n, d) of another site."""
        share = n_patients / (n_patients + _PATIENTS_OF_STORED_MEAN)
        other = GlobalTerm().to(self.mean.device)
        other.load_state_dict(self.state_dict())
        if len(pooled):
            other.mean.lerp_(pooled.double().mean(dim=0).to(self.mean), share)
        return other

    def set_unit(self, distances: Tensor) -> None:
        """Standardise by normals, of which this gave `distances`, in its unit before."""
        mean, std = distances.mean(), distances.std(correction=0)
        self.unit.copy_(torch.stack([mean, std if std > 0 else torch.ones_like(std)]))

    def forget(self) -> None:
        """Know nothing again."""
        nothing = self.mean.new_zeros(0)
        self._set(nothing, nothing, self.mean.new_zeros(0, 0))
        self.unit.copy_(torch.tensor([0.0, 1.0]))

    def _set(self, mean: Tensor, std: Tensor, whitening: Tensor) -> None:
        self.mean, self.std, self.whitening = (found.to(self.unit) for found in (mean, std, whitening))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take the number of features from the state; of a model from before there was this term, know nothing."""
        for name, nothing in GlobalTerm().state_dict().items():
            stored = state_dict.setdefault(prefix + name, nothing)
            setattr(self, name, getattr(self, name).new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


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
    without = [_fitted(term, [group for group in groups if group is not left], moves) for left in groups]
    distances = torch.cat(
        [own(_joined([group]).to(term.unit)) for own, group in zip(without, groups, strict=True) if group]
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
        found = term.moved(pooled, sum(map(len, groups)))
    else:
        found = GlobalTerm().to(term.unit.device)
        found.fit(pooled)
    found.unit.copy_(torch.tensor([0.0, 1.0]))
    return found

"""Means of the highest values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["top_mean", "top_means"]


def top_means(anomaly_map: Tensor, fractions: Sequence[float]) -> Tensor:
    """Compute the mean of each fraction of the map's highest values: (n, 1, H, W) to (n, fractions)."""
    return torch.stack([top_mean(anomaly_map.flatten(1), fraction) for fraction in fractions], dim=1)


def top_mean(values: Tensor, fraction: float) -> Tensor:
    """Compute the mean of the highest fraction of each row, at least one value: (N, M) to (N,)."""
    count = max(1, math.ceil(fraction * values.shape[1]))
    if count == values.shape[1]:
        return values.mean(dim=1)
    return values.topk(count, dim=1).values.mean(dim=1)

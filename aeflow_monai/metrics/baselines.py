"""Trivial baselines: what intensity alone tells of an image."""

from __future__ import annotations

import numpy as np
from torch import Tensor

__all__ = ["intensity_statistics"]


def intensity_statistics(image: Tensor) -> dict[str, float]:
    """Trivial statistics of an image: what any method has to beat.

    Args:
        image: any shape.

    Returns:
        Mean, standard deviation and 95th percentile over all values.
    """
    values = image.flatten().float().cpu()
    rank = max(1, round(0.95 * len(values)))
    # not by torch's kthvalue, which keeps an index of eight bytes for each value
    p95 = np.partition(values.numpy(), rank - 1)[rank - 1]
    return {
        "intensity_mean": float(values.mean()),
        "intensity_std": float(values.std(correction=0)),
        "intensity_p95": float(p95),
    }

"""Trivial baselines from image intensities."""

from __future__ import annotations

import numpy as np
from torch import Tensor

__all__ = ["intensity_statistics"]


def intensity_statistics(image: Tensor) -> dict[str, float]:
    """Compute trivial statistics of an image, which any method has to outperform.

    Args:
        image: any shape.

    Returns:
        Mean, standard deviation and 95th percentile over all values.
    """
    values = image.flatten().float().cpu()
    rank = max(1, round(0.95 * len(values)))
    # torch's kthvalue would store an index of eight bytes for each value
    p95 = np.partition(values.numpy(), rank - 1)[rank - 1]
    return {
        "intensity_mean": float(values.mean()),
        "intensity_std": float(values.std(correction=0)),
        "intensity_p95": float(p95),
    }

"""Pooled encoder features of slices, the input of the global term."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["pooled_features"]

_MOST_NUMBERS = 1024  # per slice, to bound the size of the stored matrix for any encoder


def pooled_features(features: Sequence[Tensor]) -> Tensor:
    """Compute the mean features of each slice's quarters, with all stages concatenated.

    Args:
        features: features of the encoder's stages, each (N, C_i, h_i, w_i).

    Returns:
        (N, channels, 4); for wide encoders the mean over the whole slice, (N, channels, 1).

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
    # parts may overlap by a row or column; ONNX has no operation for this
    rows, columns = ([(n * k // grid, -(-n * (k + 1) // grid)) for k in range(grid)] for n in (height, width))
    parts = [stage[:, :, top:bottom, left:right] for top, bottom in rows for left, right in columns]
    return torch.stack([part.mean(dim=(2, 3)) for part in parts], dim=2)

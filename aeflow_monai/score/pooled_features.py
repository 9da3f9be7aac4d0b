"""Pooled features of slices: what the global term looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["pooled_features"]

_MOST_NUMBERS = 1024  # of a slice, so that the stored matrix stays small, whatever the encoder


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

"""Where in a slice there is tissue, and means over it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_tissue", "mean_in_foreground"]


def mean_in_foreground(maps: Tensor, foreground: Tensor) -> Tensor:
    """Mean of each map over its foreground, 0 if there is none: (N, 1, H, W) twice to (N,)."""
    counted = foreground.to(maps.dtype)
    return (maps * counted).sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp_min(1)


def is_tissue(foreground: Tensor) -> Tensor:
    """Pixels with foreground on all four sides, or of it; all of an image that has none: (N, 1, H, W), boolean."""
    height, width = foreground.shape[-2:]
    # not int16, of which ONNX Runtime and OpenVINO give no minimum
    rows = torch.arange(height, device=foreground.device, dtype=torch.int32).view(-1, 1)
    columns = torch.arange(width, device=foreground.device, dtype=torch.int32)
    tissue = torch.ones_like(foreground)
    for dim, place in ((-2, rows), (-1, columns)):
        first = torch.where(foreground, place, foreground.shape[dim]).amin(dim, keepdim=True)
        last = torch.where(foreground, place, -1).amax(dim, keepdim=True)
        tissue = tissue & (place >= first) & (place <= last)
    return tissue | ~foreground.flatten(1).any(dim=1).view(-1, 1, 1, 1)

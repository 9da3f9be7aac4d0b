"""Tissue mask of slices, and means over the foreground."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_tissue", "mean_in_foreground"]


def mean_in_foreground(maps: Tensor, foreground: Tensor) -> Tensor:
    """Compute the mean of each map over its foreground, 0 if there is none: (N, 1, H, W) twice to (N,)."""
    counted = foreground.to(maps.dtype)
    return (maps * counted).sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp_min(1)


def is_tissue(foreground: Tensor) -> Tensor:
    """Return where there is foreground here or on all four sides; everywhere without any: (N, 1, H, W), boolean."""
    height, width = foreground.shape[-2:]
    # not int16, for which ONNX Runtime and OpenVINO have no minimum
    rows = torch.arange(height, device=foreground.device, dtype=torch.int32).view(-1, 1)
    columns = torch.arange(width, device=foreground.device, dtype=torch.int32)
    tissue = torch.ones_like(foreground)
    for dim, place in ((-2, rows), (-1, columns)):
        first = torch.where(foreground, place, foreground.shape[dim]).amin(dim, keepdim=True)
        last = torch.where(foreground, place, -1).amax(dim, keepdim=True)
        tissue = tissue & (place >= first) & (place <= last)
    return tissue | ~foreground.flatten(1).any(dim=1).view(-1, 1, 1, 1)

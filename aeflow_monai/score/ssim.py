"""Structural similarity (SSIM) of a reconstruction and its image, position by position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ssim_map"]

_WINDOW, _SIGMA = 11, 1.5


def ssim_map(reconstruction: Tensor, image: Tensor) -> Tensor:
    """SSIM of each position (N, 1, H, W), mean over channels; borders are mirrored to keep the size.

    Equal to MONAI's `compute_ssim_and_cs`, whose two-dimensional window costs a CPU twice what the encoder does.
    """
    x, y = reconstruction.float(), image.float()
    moments = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    # variances are differences of nearly equal numbers, of which half precision leaves noise
    with torch.autocast(x.device.type, enabled=False):
        blurred = _blur(moments.shape[-2], x) @ moments @ _blur(moments.shape[-1], x).T
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = blurred.chunk(5, dim=1)
    # the data range is 1, that of the network's input, never the batch's own: a score must not depend on its neighbours
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    variances = mean_xx - mean_x**2 + mean_yy - mean_y**2
    contrast_and_structure = (2 * (mean_xy - mean_x * mean_y) + c2) / (variances + c2)
    return (luminance * contrast_and_structure).mean(dim=1, keepdim=True)


def _blur(size: int, like: Tensor) -> Tensor:
    """SSIM's blur along an axis as a matrix (size, size), borders mirrored: faster on a CPU than a convolution."""
    half = _WINDOW // 2
    offsets = torch.arange(-half, half + 1, device=like.device, dtype=like.dtype)
    window = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    pixels = torch.eye(size, device=like.device, dtype=like.dtype)[:, None]
    blurred = F.conv1d(F.pad(pixels, (half, half), mode="reflect"), (window / window.sum())[None, None])
    return blurred[:, 0].T

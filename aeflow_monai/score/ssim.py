"""Structural similarity (SSIM) between a reconstruction and its image, as a map."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ssim_map"]

_WINDOW, _SIGMA = 11, 1.5


def ssim_map(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Compute the SSIM at each position, (N, 1, H, W), mean over channels; borders are mirrored to keep the size.

    Equal to MONAI's `compute_ssim_and_cs`, whose two-dimensional window takes twice as long as the encoder on a CPU.
    """
    x, y = reconstruction.float(), image.float()
    product = x * y
    # only the sum of the two squares is needed
    moments = torch.cat([x, y, x * x + y * y, product], dim=1)
    # variances are differences of nearly equal numbers, which half precision reduces to noise
    with torch.autocast(x.device.type, enabled=False):
        mean_x, mean_y, mean_of_squares, mean_of_product = _blurred(moments).chunk(4, dim=1)
    # the data range is 1, that of the network's input, not that of the batch: a score must not depend on other images
    c1, c2 = 0.01**2, 0.03**2
    product_of_means, squares_of_means = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    likeness = (2 * product_of_means + c1) * (2 * (mean_of_product - product_of_means) + c2)
    ssim = likeness / ((squares_of_means + c1) * (mean_of_squares - squares_of_means + c2))
    return ssim.mean(dim=1, keepdim=True)


def _blurred(maps: Tensor) -> Tensor:
    """Blur each map (N, C, H, W) with a Gaussian, borders mirrored, along one axis and then the other."""
    channels, half = int(maps.shape[1]), _WINDOW // 2
    weights = [math.exp(-0.5 * (offset / _SIGMA) ** 2) for offset in range(-half, half + 1)]
    window = torch.tensor([weight / sum(weights) for weight in weights], device=maps.device, dtype=maps.dtype)
    window = window.view(1, 1, -1, 1).repeat(channels, 1, 1, 1)
    # channels last takes a third of the time on a CPU
    padded = F.pad(maps, (half,) * 4, mode="reflect").contiguous(memory_format=torch.channels_last)
    along_rows = F.conv2d(padded, window, groups=channels)
    return F.conv2d(along_rows, window.transpose(2, 3), groups=channels).contiguous()

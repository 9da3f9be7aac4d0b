"""The decoder: reconstructs the image from the latents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Decoder that reconstructs the image from the latents of one or several stages.

    It starts at the coarsest latent. Each block doubles the resolution (transposed convolution 2x2, stride 2) and
    refines the result (convolution 3x3 of the same width); a finer latent is concatenated where its resolution is
    reached. The last transposed convolution gives the image, and a sigmoid keeps it in [0, 1]. Latents of equal stride,
    such as those of several blocks of a vision transformer, are concatenated. A stride that is not a power of two, such
    as 14, is rounded up to the next one, and the image is downsampled at the end. With one latent of 1024 channels at
    stride 16 and `channels=[512, 256, 64]` this is the published decoder.

    Args:
        latent_channels: channels of each latent, finest first.
        strides: pixels per position of each latent, ascending: powers of two, or the same stride for all latents.
        out_channels: channels of the image.
        channels: width of each block but the last; if None, 16, 32, 64, ... from the finest up.

    Raises:
        ValueError: different strides that are not ascending powers of two, or a number of widths that does not fit the
            blocks.

    Example:
        >>> decoder = Decoder([40, 112], strides=[8, 16], out_channels=1)
        >>> latents = [torch.randn(2, 40, 8, 8), torch.randn(2, 112, 4, 4)]
        >>> tuple(decoder(latents).shape)
        (2, 1, 64, 64)

    Source: Zhao, Ding, Zhang, "AE-FLOW", ICLR 2023, section 3 (the published activations are unknown: ReLU here).
    """

    def __init__(
        self,
        latent_channels: Sequence[int],
        strides: Sequence[int],
        out_channels: int,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        are_powers = all(s >= 2 and s & (s - 1) == 0 for s in strides)
        if list(strides) != sorted(strides) or min(strides) < 2 or (len(set(strides)) > 1 and not are_powers):
            raise ValueError(
                f"The decoder doubles the resolution block by block, so strides have to be ascending powers of two, or "
                f"all the same; got {list(strides)}. Choose stages of the encoder that have such strides."
            )
        self.stride = strides[-1]
        coarsest = 1 << (self.stride - 1).bit_length()
        n_blocks = coarsest.bit_length() - 2  # the last doubling gives the image
        widths = [16 * 2**i for i in reversed(range(n_blocks))] if channels is None else list(channels)
        if len(widths) != n_blocks:
            raise ValueError(
                f"From stride {coarsest} to the image there are {n_blocks} blocks before the last; "
                f"got {len(widths)} widths: {widths}."
            )
        self.n_joining: list[int] = []  # number of latents that join at each block, the initial ones first
        at = [1 << (stride - 1).bit_length() for stride in strides]
        channels_at: Counter[int] = Counter()
        for stride, n_channels in zip(at, latent_channels, strict=True):
            channels_at[stride] += n_channels
        width, stride = channels_at[coarsest], coarsest
        self.n_joining.append(at.count(coarsest))
        self.blocks = nn.ModuleList()
        for out in widths:
            self.blocks.append(
                nn.Sequential(
                    nn.ConvTranspose2d(width, out, 2, stride=2),
                    nn.ReLU(),
                    nn.Conv2d(out, out, 3, padding=1),
                    nn.ReLU(),
                )
            )
            stride //= 2
            self.n_joining.append(at.count(stride))
            width = out + channels_at[stride]
        self.to_image = nn.Sequential(nn.ConvTranspose2d(width, out_channels, 2, stride=2), nn.Sigmoid())

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        """Reconstruct images from their latents.

        Args:
            latents: one tensor (N, latent_channels[i], H / strides[i], W / strides[i]) per stage, finest first.

        Returns:
            (N, out_channels, H, W) in [0, 1].
        """
        # channels last is a third faster on a CPU (benchmarks/network_speed.py)
        waiting = [latent.contiguous(memory_format=torch.channels_last) for latent in latents]
        size = [self.stride * positions for positions in waiting[-1].shape[-2:]]
        first, *n_joining = self.n_joining
        x = _joined([waiting.pop() for _ in range(first)])
        for block, n in zip(self.blocks, n_joining, strict=True):
            x = _joined([block(x), *(waiting.pop() for _ in range(n))])
        image: Tensor = self.to_image(x)
        if list(image.shape[-2:]) != size:
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
        return image.contiguous()


def _joined(maps: list[Tensor]) -> Tensor:
    return torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]

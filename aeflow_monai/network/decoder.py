"""The decoder: from the latents back to the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Reconstruction of the image from the latents of one or several stages.

    Starts at the coarsest latent. Each block doubles the resolution (transposed convolution 2x2, stride 2) and
    refines (convolution 3x3 of the same width); a finer latent joins where its resolution is reached. The last
    transposed convolution gives the image, and a sigmoid keeps it in [0, 1]. With one latent of 1024 channels at
    stride 16 and `channels=[512, 256, 64]` this is the published decoder.

    Args:
        latent_channels: channels of each latent, finest first.
        strides: pixels per position of each latent, ascending powers of two.
        out_channels: channels of the image.
        channels: width of each block but the last; 16, 32, 64, ... from the finest up if None.

    Raises:
        ValueError: strides that are no ascending powers of two, or another number of widths than blocks need.

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
        if list(strides) != sorted(set(strides)) or any(s < 2 or s & (s - 1) for s in strides):
            raise ValueError(
                f"The decoder doubles the resolution block by block, so strides have to be ascending powers of two; "
                f"got {list(strides)}. Choose stages of the encoder that have such strides."
            )
        coarsest = strides[-1]
        n_blocks = coarsest.bit_length() - 2  # the last doubling belongs to the image
        widths = [16 * 2**i for i in reversed(range(n_blocks))] if channels is None else list(channels)
        if len(widths) != n_blocks:
            raise ValueError(
                f"From stride {coarsest} to the image there are {n_blocks} blocks before the last; "
                f"got {len(widths)} widths: {widths}."
            )
        joining = dict(zip(strides, latent_channels, strict=True))
        width, stride = joining.pop(coarsest), coarsest
        self.blocks = nn.ModuleList()
        self.joins: list[bool] = []
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
            self.joins.append(stride in joining)
            width = out + joining.get(stride, 0)
        self.to_image = nn.Sequential(nn.ConvTranspose2d(width, out_channels, 2, stride=2), nn.Sigmoid())

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        """Reconstruct.

        Args:
            latents: one tensor (N, latent_channels[i], H / strides[i], W / strides[i]) per stage, finest first.

        Returns:
            (N, out_channels, H, W) in [0, 1].
        """
        # a third faster on a CPU (benchmarks/network_speed.py)
        waiting = [latent.contiguous(memory_format=torch.channels_last) for latent in latents]
        x = waiting.pop()
        for block, join in zip(self.blocks, self.joins, strict=True):
            x = block(x)
            if join:
                x = torch.cat([x, waiting.pop()], dim=1)
        image: Tensor = self.to_image(x)
        return image.contiguous()

"""One step of a flow: affine coupling, global affine, and an invertible mixing of the channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.network.subnets import SUBNETS, convolved_1x1

__all__ = ["MIXINGS", "FlowStep"]

MIXINGS = ("linear", "permutation")


class FlowStep(nn.Module):
    """One invertible flow step: affine coupling, global affine and mixing of the channels.

    The subnet maps the passive half of the channels to the scale and shift of the active half; `clamp * tanh` bounds
    the log-scale. The global affine has one softplus scale and one offset per channel. The channels are then mixed, so
    that the next step splits them differently: either by an invertible 1x1 convolution that is initialised as a random
    rotation, or by a fixed permutation.

    Args:
        channels: channels of the features, at least 2.
        subnet: "conv" or "resnet", see `SUBNETS`.
        hidden_channels: width of the "conv" subnet.
        clamp: bound of the coupling's log-scale, in nats, above 0.
        generator: random generator for the rotation or permutation; the default generator if None.
        mixing: "linear" or "permutation".

    Raises:
        ValueError: unknown subnet or mixing, fewer than 2 channels, or clamp or hidden_channels not above 0.

    Source: Dinh et al., "Density estimation using Real NVP" (coupling); the softplus affine is that of FrEIA's
    AllInOneBlock, which re-implementations of AE-Flow build on; Kingma, Dhariwal, "Glow", 2018, section 3.2 (the
    invertible 1x1 convolution).
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(
        self,
        channels: int,
        subnet: str,
        hidden_channels: int,
        clamp: float = 2.0,
        generator: torch.Generator | None = None,
        mixing: str = "linear",
    ) -> None:
        super().__init__()
        if mixing not in MIXINGS:
            raise ValueError(f"Unknown mixing of channels {mixing!r}: choose one of {list(MIXINGS)}.")
        if subnet not in SUBNETS:
            raise ValueError(f"Unknown coupling subnet {subnet!r}: choose one of {sorted(SUBNETS)}.")
        if channels < 2:
            raise ValueError(f"A coupling splits the channels in two, so it needs at least 2; got {channels}.")
        if clamp <= 0 or hidden_channels < 1:
            raise ValueError(
                f"clamp and hidden_channels have to be above 0; got clamp={clamp}, hidden_channels={hidden_channels}."
            )
        self.active = channels // 2
        self.passive = channels - self.active
        self.clamp = clamp
        self.subnet = SUBNETS[subnet](self.passive, 2 * self.active, hidden_channels)
        # softplus with beta 0.5, times 0.1: the initial scale is 1, with a slope gentle enough for Adam's first steps
        initial = 2.0 * math.log(math.exp(5.0) - 1.0)
        self.global_scale = nn.Parameter(torch.full((channels,), initial))
        self.global_offset = nn.Parameter(torch.zeros(channels))
        self.mixing: nn.Parameter | None = None
        if mixing == "linear":
            rotation, _ = torch.linalg.qr(torch.randn(channels, channels, generator=generator))
            self.mixing = nn.Parameter(rotation.contiguous())
        else:
            permutation = torch.randperm(channels, generator=generator)
            self.register_buffer("permutation", permutation)
            self.register_buffer("inverse_permutation", torch.argsort(permutation))

    def scale(self) -> Tensor:
        """Return the scale of each channel in the global affine, (C,), above 0."""
        return 0.1 * F.softplus(self.global_scale, beta=0.5)

    def constant_log_abs_det(self) -> Tensor:
        """Return the part of log |det J| that does not depend on the features, a scalar: global affine and mixing."""
        constant = self.scale().log().sum()
        return constant if self.mixing is None else constant + torch.linalg.slogdet(self.mixing).logabsdet

    def _coupling(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.subnet(passive).chunk(2, dim=1)
        return self.clamp * torch.tanh(log_scale), shift

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Transform features.

        Args:
            features: (N, C, h, w).

        Returns:
            The transformed features (N, C, h, w), and log |det J| per position (N, 1, h, w) in nats.
        """
        passive, active = torch.split(features, [self.passive, self.active], dim=1)
        log_scale, shift = self._coupling(passive)
        scale = self.scale()
        # in place, since the backward pass of addcmul makes one more pass over memory
        joined = torch.cat([passive, (active * torch.exp(log_scale)).add_(shift)], dim=1)
        log_abs_det = log_scale.sum(dim=1, keepdim=True) + self.constant_log_abs_det()
        if self.mixing is not None:
            # one pass over memory for both linear maps
            return convolved_1x1(joined, self.mixing * scale, self.mixing @ self.global_offset), log_abs_det
        moved = (joined * scale.view(1, -1, 1, 1)).add_(self.global_offset.view(1, -1, 1, 1))
        return moved.index_select(1, self.permutation), log_abs_det

    def inverse(self, transformed: Tensor) -> Tensor:
        """Undo `forward`: (N, C, h, w) to (N, C, h, w)."""
        if self.mixing is not None:
            back = torch.linalg.inv(self.mixing.double()).to(transformed)
            moved = convolved_1x1(transformed, back, None)
        else:
            moved = transformed.index_select(1, self.inverse_permutation)
        joined = (moved - self.global_offset.view(1, -1, 1, 1)) / self.scale().view(1, -1, 1, 1)
        passive, active = torch.split(joined, [self.passive, self.active], dim=1)
        log_scale, shift = self._coupling(passive)
        return torch.cat([passive, (active - shift) * torch.exp(-log_scale)], dim=1)


def default_width(channels: int) -> int:
    # bounds the number of weights of the couplings, which for wide backbones would exceed the encoder's cost
    return max(1, min(channels // 2, 64, 2**14 // channels))

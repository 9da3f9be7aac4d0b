"""The normalizing flow: an exact, invertible map from encoder features to a standard normal latent.

One step is an affine coupling, a global affine and a mixing of the channels: a learned linear map, or a fixed
permutation. Everything is local to a position of the feature grid but for the coupling's convolutions, so the
log-determinant keeps its position too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.network.feature_norm import FeatureNorm

__all__ = [
    "MIXINGS",
    "SUBNETS",
    "FlowStep",
    "LatentFlow",
    "log_likelihood_per_channel",
    "standard_normal_log_density",
]

# Each subnet scales its outputs by this, so that a new flow starts close to the identity.
SUBNET_SCALE = 0.1


def _convolved_1x1(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution (out, in) as a matrix product, quicker where channels are last in memory."""
    return F.linear(features.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class ConvSubnet(nn.Sequential):
    """Coupling subnet "conv": 3x3 convolution, ReLU, 1x1 convolution (FastFlow's)."""

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden_channels, out_channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in, h, w) to (N, out, h, w), scaled by `SUBNET_SCALE`."""
        hidden = self[1](self[0](features))
        last = self[2]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        # the few weights are scaled, not the many outputs, which would be one more pass through memory
        return _convolved_1x1(hidden, SUBNET_SCALE * last.weight[:, :, 0, 0], SUBNET_SCALE * last.bias)


class ResNetSubnet(nn.Module):
    """Coupling subnet "resnet": 3x3 convolution, batch norm, ReLU, plus a 1x1 shortcut.

    It has one layer only: `hidden_channels` has no meaning for it and is ignored.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in, h, w) to (N, out, h, w), scaled by `SUBNET_SCALE`."""
        output: Tensor = SUBNET_SCALE * (self.main(features) + self.shortcut(features))
        return output


SUBNETS: dict[str, Callable[[int, int, int], nn.Module]] = {"conv": ConvSubnet, "resnet": ResNetSubnet}


def standard_normal_log_density(latent: Tensor) -> Tensor:
    """Log-density of N(0, I), summed over the channels of each position.

    Computed in float32 or better, and never exponentiated: at 1024 x 16 x 16 the density itself is exactly 0 in
    any floating-point format.

    Args:
        latent: (N, C, h, w).

    Returns:
        (N, 1, h, w), in nats.

    Example:
        >>> standard_normal_log_density(torch.zeros(1, 2, 1, 1)).item()  # -log(2 pi)
        -1.8378770351409912
    """
    latent = latent.float() if latent.dtype in (torch.float16, torch.bfloat16) else latent
    squares = latent.square().sum(dim=1, keepdim=True)
    return -0.5 * (squares + latent.shape[1] * math.log(2 * math.pi))


def log_likelihood_per_channel(latent: Tensor, log_abs_det_jacobian: Tensor) -> Tensor:
    """Log-likelihood of the features behind a latent, by the change of variables.

    Args:
        latent: (N, C, h, w).
        log_abs_det_jacobian: of the flow, (N, 1, h, w) in nats.

    Returns:
        (N, 1, h, w), in nats per channel.
    """
    return (standard_normal_log_density(latent) + log_abs_det_jacobian) / latent.shape[1]


MIXINGS = ("linear", "permutation")


class FlowStep(nn.Module):
    """One invertible step: affine coupling, global affine, mixing of the channels.

    The passive half of the channels goes through the subnet, which gives scale and shift of the active half;
    `clamp * tanh` bounds the log-scale. The global affine has one softplus scale and one offset per channel. What mixes
    the channels, so that the next step's halves differ, is an invertible 1x1 convolution that starts as a random
    rotation, or a fixed permutation.

    Args:
        channels: channels of the features, at least 2.
        subnet: "conv" or "resnet", see `SUBNETS`.
        hidden_channels: width of the "conv" subnet.
        clamp: bound of the coupling's log-scale, in nats, above 0.
        generator: source of the rotation or permutation; the default generator if None.
        mixing: "linear" or "permutation".

    Raises:
        ValueError: unknown subnet or mixing, fewer than 2 channels, clamp or hidden_channels not above 0.

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
        # softplus with beta 0.5, times 0.1: starts at a scale of 1 with a slope gentle enough for Adam's first steps
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
        """Scale of each channel in the global affine, (C,), above 0."""
        return 0.1 * F.softplus(self.global_scale, beta=0.5)

    def constant_log_abs_det(self) -> Tensor:
        """Part of log |det J| that is the same for all features, a scalar: that of the global affine and the mixing."""
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
        # added in place, since the gradient of addcmul makes one more pass through memory
        joined = torch.cat([passive, (active * torch.exp(log_scale)).add_(shift)], dim=1)
        log_abs_det = log_scale.sum(dim=1, keepdim=True) + self.constant_log_abs_det()
        if self.mixing is not None:
            # both linear maps in one pass through memory
            return _convolved_1x1(joined, self.mixing * scale, self.mixing @ self.global_offset), log_abs_det
        moved = (joined * scale.view(1, -1, 1, 1)).add_(self.global_offset.view(1, -1, 1, 1))
        return moved.index_select(1, self.permutation), log_abs_det

    def inverse(self, transformed: Tensor) -> Tensor:
        """Undo `forward`: (N, C, h, w) to (N, C, h, w)."""
        if self.mixing is not None:
            back = torch.linalg.inv(self.mixing.double()).to(transformed)
            moved = _convolved_1x1(transformed, back, None)
        else:
            moved = transformed.index_select(1, self.inverse_permutation)
        joined = (moved - self.global_offset.view(1, -1, 1, 1)) / self.scale().view(1, -1, 1, 1)
        passive, active = torch.split(joined, [self.passive, self.active], dim=1)
        log_scale, shift = self._coupling(passive)
        return torch.cat([passive, (active - shift) * torch.exp(-log_scale)], dim=1)


def _default_width(channels: int) -> int:
    # wide backbones would spend more on the couplings than on the encoder: their weights are bounded, not their width
    return max(1, min(channels // 2, 64, 2**14 // channels))


class LatentFlow(nn.Module):
    """The flow of AE-Flow: `n_steps` flow steps from encoder features to the latent.

    Args:
        channels: channels of the features, at least 2.
        n_steps: number of steps, at least 1.
        subnet: "conv" or "resnet", see `SUBNETS`.
        hidden_channels: width of the "conv" subnet; if None half the channels, which is FastFlow's ratio of 1, but
            no more than 64, and fewer where there are more than 256 channels: 16 for 1024.
        clamp: bound of each coupling's log-scale, in nats.
        seed: fixes the channels' rotations or permutations, which are part of the model and of its state dict.
        feature_norm: begin with a `FeatureNorm` of this kind, "channel" or "image"; the published flow has none.
        mixing: of the channels after each step, "linear" or "permutation", see `FlowStep`.

    Raises:
        ValueError: unknown subnet, feature_norm or mixing, or a number out of its range.

    Example:
        >>> flow = LatentFlow(channels=4, n_steps=2)
        >>> features = torch.randn(1, 4, 8, 8)
        >>> latent, log_abs_det_jacobian = flow(features)
        >>> tuple(latent.shape), tuple(log_abs_det_jacobian.shape)
        ((1, 4, 8, 8), (1, 1, 8, 8))
        >>> torch.allclose(flow.inverse(latent), features, atol=1e-5)
        True

    Source: Zhao, Ding, Zhang, "AE-FLOW", ICLR 2023, section 3 (eight steps).
    """

    def __init__(
        self,
        channels: int,
        n_steps: int = 8,
        subnet: str = "conv",
        hidden_channels: int | None = None,
        clamp: float = 2.0,
        seed: int = 0,
        feature_norm: str | None = "channel",
        mixing: str = "linear",
    ) -> None:
        super().__init__()
        if n_steps < 1:
            raise ValueError(f"n_steps has to be at least 1; got {n_steps}.")
        generator = torch.Generator().manual_seed(seed)
        hidden = _default_width(channels) if hidden_channels is None else hidden_channels
        self.channels = channels
        self.norm = None if feature_norm is None else FeatureNorm(channels, feature_norm)
        self.steps = nn.ModuleList(FlowStep(channels, subnet, hidden, clamp, generator, mixing) for _ in range(n_steps))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features to the latent.

        Args:
            features: (N, C, h, w).

        Returns:
            The latent z' (N, C, h, w), and log |det J| per position (N, 1, h, w) in nats. The Jacobian's total
            log-determinant is the sum of the latter over the positions.

        Raises:
            ValueError: the features have another number of channels.
        """
        if features.ndim != 4 or features.shape[1] != self.channels:
            raise ValueError(
                f"Expected features of shape (N, {self.channels}, h, w); got {tuple(features.shape)}. "
                "The flow has to be built for the encoder stage that feeds it."
            )
        latent = features
        log_abs_det_jacobian = torch.zeros_like(features[:, :1])
        if self.norm is not None:
            latent, log_abs_det = self.norm(features)
            log_abs_det_jacobian = log_abs_det_jacobian + log_abs_det
        latent = latent.contiguous(memory_format=torch.channels_last)
        for step in self.steps:
            latent, log_abs_det = step(latent)
            log_abs_det_jacobian = log_abs_det_jacobian + log_abs_det
        return latent, log_abs_det_jacobian

    def inverse(self, latent: Tensor) -> Tensor:
        """Map the latent (N, C, h, w) back to the features (N, C, h, w)."""
        features = latent.contiguous(memory_format=torch.channels_last)
        for step in reversed(self.steps):
            assert isinstance(step, FlowStep)
            features = step.inverse(features)
        return features if self.norm is None else self.norm.inverse(features)

    def log_likelihood(self, features: Tensor) -> Tensor:
        """Log-likelihood of each position: log N(z'; 0, I) + log |det J|, divided by the channels.

        Args:
            features: (N, C, h, w).

        Returns:
            (N, 1, h, w), in nats per channel.
        """
        return log_likelihood_per_channel(*self(features))

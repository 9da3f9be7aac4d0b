"""The normalizing flow: an exact, invertible map from encoder features to a standard normal latent.

Each step consists of an affine coupling, a global affine and a mixing of the channels, by a learned linear map or a
fixed permutation. Apart from the couplings' convolutions, everything acts on each position of the feature grid
separately, so the log-determinant is known per position.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aeflow_monai.network.feature_norm import FeatureNorm
from aeflow_monai.network.flow_step import FlowStep, default_width

__all__ = ["LatentFlow", "log_likelihood_per_channel", "standard_normal_log_density"]


def standard_normal_log_density(latent: Tensor) -> Tensor:
    """Compute the log-density of N(0, I), summed over the channels of each position.

    It is computed in float32 or better and never exponentiated: at 1024 x 16 x 16 the density itself underflows to 0 in
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
    """Compute the log-likelihood of the features that a latent was mapped from, by the change of variables.

    Args:
        latent: (N, C, h, w).
        log_abs_det_jacobian: log |det J| of the flow, (N, 1, h, w) in nats.

    Returns:
        (N, 1, h, w), in nats per channel.
    """
    return (standard_normal_log_density(latent) + log_abs_det_jacobian) / latent.shape[1]


class LatentFlow(nn.Module):
    """The flow of AE-Flow: `n_steps` flow steps from encoder features to the latent.

    Args:
        channels: channels of the features, at least 2.
        n_steps: number of steps, at least 1.
        subnet: "conv" or "resnet", see `SUBNETS`.
        hidden_channels: width of the "conv" subnet. If None, half the channels (FastFlow's ratio of 1), but at most 64,
            and less above 256 channels: 16 for 1024.
        clamp: bound of each coupling's log-scale, in nats.
        seed: seed of the channels' rotations or permutations, which are part of the model and of its state dict.
        feature_norm: start with a `FeatureNorm` of this kind, "channel" or "image"; None for none, as in the published
            flow.
        mixing: mixing of the channels after each step, "linear" or "permutation", see `FlowStep`.

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
        hidden = default_width(channels) if hidden_channels is None else hidden_channels
        self.channels = channels
        self.norm = None if feature_norm is None else FeatureNorm(channels, feature_norm)
        self.steps = nn.ModuleList(FlowStep(channels, subnet, hidden, clamp, generator, mixing) for _ in range(n_steps))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features to the latent.

        Args:
            features: (N, C, h, w).

        Returns:
            The latent z' (N, C, h, w), and log |det J| per position (N, 1, h, w) in nats. The log-determinant of the
            whole Jacobian is its sum over the positions.

        Raises:
            ValueError: the features have a different number of channels.
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
        """Compute the log-likelihood of each position, (log N(z'; 0, I) + log |det J|) / channels.

        Args:
            features: (N, C, h, w).

        Returns:
            (N, 1, h, w), in nats per channel.
        """
        return log_likelihood_per_channel(*self(features))

"""The latent prior where something abnormal is learned from: a mixture of two Gaussians instead of one.

Normal positions come from N(0, I), as ever, and abnormal ones from N(mean, I).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MixturePrior"]


class MixturePrior(nn.Module):
    """Mixture of a normal and an abnormal Gaussian over the latents of each stage.

    Both have the covariance I, so what tells them apart is the latent's place along one direction. The abnormal mean
    is drawn once and stays fixed: the flow can bring features anywhere, so a learned mean would add nothing but a way
    for both components to fall together.

    Args:
        channels: channels of the latent of each stage.
        distance: between the two means, in standard deviations per channel (root mean square), above 0.
        seed: of the means.

    Raises:
        ValueError: no stage, or a number out of its range.

    Example:
        >>> prior = MixturePrior([4], distance=1.0)
        >>> middle = prior.means[0].view(1, 4, 1, 1) / 2
        >>> [round(ratio.item(), 6) for ratio in prior.log_ratios([middle])]  # as likely under the one as the other
        [0.0]

    Source: Izmailov, Kirichenko, Finzi, Wilson, "Semi-Supervised Learning with Normalizing Flows" (FlowGMM), ICML
    2020: a Gaussian of fixed, random mean for each class.
    """

    def __init__(self, channels: Sequence[int], distance: float = 2.0, seed: int = 0) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels needs the channels of one stage or more; got none.")
        if distance <= 0 or not math.isfinite(distance):
            raise ValueError(f"distance is that of the two means and has to be above 0; got {distance}.")
        generator = torch.Generator().manual_seed(seed)
        for stage, n_channels in enumerate(channels):
            direction = torch.randn(n_channels, generator=generator)
            self.register_buffer(f"mean_{stage}", distance * math.sqrt(n_channels) * F.normalize(direction, dim=0))
        self.n_stages = len(channels)

    @property
    def means(self) -> list[Tensor]:
        """Mean of the abnormal component, (C_i,) for each stage; the normal component's is 0."""
        return [self.get_buffer(f"mean_{stage}") for stage in range(self.n_stages)]

    def log_ratios(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Log-likelihood ratio of the components, log N(z'; mean, I) - log N(z'; 0, I).

        The log-determinant of the flow is that of both, so it is the ratio of the features' likelihoods too.

        Args:
            latents: z' of each stage, (N, C_i, h_i, w_i).

        Returns:
            For each stage (N, 1, h_i, w_i), in nats per channel; above 0 where abnormal is more likely.
        """
        # half precision would lose a difference that is small beside its terms
        with torch.autocast(latents[0].device.type, enabled=False):
            return [
                (F.conv2d(latent.float(), mean.view(1, -1, 1, 1)) - 0.5 * mean.square().sum()) / len(mean)
                for latent, mean in zip(latents, self.means, strict=True)
            ]

"""Standardisation of encoder features before a flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.processes import n_processes, summed

__all__ = ["FEATURE_NORMS", "FeatureNorm"]

FEATURE_NORMS = ("channel", "image")


class FeatureNorm(nn.Module):
    """Standardise each channel by the first training batch; from then on it is a fixed affine map.

    In distributed training the first batch is that of all processes together.

    Pretrained features have units of their own (a standard deviation of 6 with the default encoder), and a flow that
    starts far from its base distribution spends its first epochs on learning the scale. Mean and standard deviation are
    buffers, not parameters: they are saved with the model, and are the same in all processes of a distributed training.

    Kind "image" first standardises the features of each image to mean 0 and standard deviation 1 over channels and
    positions. This removes the effect of exposure and contrast of the whole image, for images without a common
    intensity scale, such as radiographs; the flow models the features after this, and `inverse` returns them so.

    Args:
        channels: channels of the features.
        kind: "channel" or "image".

    Raises:
        ValueError: unknown kind.

    Source: the data-dependent initialisation of Kingma, Dhariwal, "Glow", 2018, section 3.1, not trained further; the
    layer norm before it is that of Yu et al., "FastFlow", 2021, without its weights.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, channels: int, kind: str = "channel") -> None:
        super().__init__()
        if kind not in FEATURE_NORMS:
            raise ValueError(f"Unknown feature_norm {kind!r}: choose one of {list(FEATURE_NORMS)}, or null for none.")
        self.kind = kind
        if kind == "image":  # in the state dict, so that loading a checkpoint of the other kind fails
            self.register_buffer("per_image", torch.tensor(True))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Standardise (N, C, h, w); also return log |det J| of the scale, a scalar that holds for every position."""
        if self.kind == "image":
            features = F.layer_norm(features, features.shape[1:])
        if self.training and not self.fitted:
            flat = features.detach().float().transpose(0, 1).flatten(1)
            mean, std = _statistics(flat)
            self.mean.copy_(mean)
            # a channel that is constant in the first batch must not be amplified later
            self.std.copy_(std.clamp_min(1e-2))
            self.fitted.fill_(True)
        standardised = (features - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)
        return standardised, -self.std.log().sum()

    def inverse(self, standardised: Tensor) -> Tensor:
        """Undo `forward`: (N, C, h, w) to (N, C, h, w)."""
        return standardised * self.std.view(1, -1, 1, 1) + self.mean.view(1, -1, 1, 1)


def _statistics(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each row (C, n), over the columns of all processes."""
    if n_processes() == 1:
        return flat.mean(dim=1), flat.std(dim=1, correction=0)
    count = summed(torch.tensor(float(flat.shape[1]), device=flat.device))
    mean = summed(flat.sum(dim=1)) / count
    return mean, (summed((flat - mean[:, None]).square().sum(dim=1)) / count).sqrt()

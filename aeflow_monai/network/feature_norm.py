"""What brings features to the unit that a flow starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.processes import n_processes, summed

__all__ = ["FEATURE_NORMS", "FeatureNorm"]

FEATURE_NORMS = ("channel", "image")


class FeatureNorm(nn.Module):
    """Standardise each channel by the first batch that it sees in training; from then on it is a fixed affine map.

    In a training of several processes the first batch is that of all of them, as in a training of one process.

    Pretrained features come in units of their own (the default encoder's have a standard deviation of 6), and a flow
    that starts far from its base distribution spends its first epochs on the scale alone. Mean and deviation are
    buffers, not parameters: they are saved with the model, and every process of a distributed training agrees on
    them.

    Kind "image" first brings the features of each image to mean 0 and deviation 1 over channels and positions. What
    exposure and contrast of a whole image do to the features is then gone, for images that no common scale of
    intensities unites, as radiographs; the flow models the features without it, and that is what `inverse` returns.

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
        if kind == "image":  # in the state dict, so that a checkpoint of the one kind is not loaded into the other
            self.register_buffer("per_image", torch.tensor(True))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Standardise (N, C, h, w); log |det J| of the channels' scale is a scalar, equal for all positions."""
        if self.kind == "image":
            features = F.layer_norm(features, features.shape[1:])
        if self.training and not self.fitted:
            flat = features.detach().float().transpose(0, 1).flatten(1)
            mean, std = _statistics(flat)
            self.mean.copy_(mean)
            # a channel that never fires in the first batch must not be blown up later
            self.std.copy_(std.clamp_min(1e-2))
            self.fitted.fill_(True)
        standardised = (features - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)
        return standardised, -self.std.log().sum()

    def inverse(self, standardised: Tensor) -> Tensor:
        """Undo `forward`: (N, C, h, w) to (N, C, h, w)."""
        return standardised * self.std.view(1, -1, 1, 1) + self.mean.view(1, -1, 1, 1)


def _statistics(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each row (C, n), over the columns of all processes."""
    if n_processes() == 1:
        return flat.mean(dim=1), flat.std(dim=1, correction=0)
    count = summed(torch.tensor(float(flat.shape[1]), device=flat.device))
    mean = summed(flat.sum(dim=1)) / count
    return mean, (summed((flat - mean[:, None]).square().sum(dim=1)) / count).sqrt()

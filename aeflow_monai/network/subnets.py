"""Subnets of coupling layers: convolutional networks that predict scale and shift."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SUBNETS"]

# Output scale of each subnet, so that a new flow starts close to the identity.
SUBNET_SCALE = 0.1


def convolved_1x1(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a 1x1 convolution (out, in) as a matrix product, which is faster in the channels-last memory format."""
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
        # scale the few weights, not the many outputs, which would take one more pass over memory
        return convolved_1x1(hidden, SUBNET_SCALE * last.weight[:, :, 0, 0], SUBNET_SCALE * last.bias)


class ResNetSubnet(nn.Module):
    """Coupling subnet "resnet": 3x3 convolution, batch norm, ReLU, plus a 1x1 shortcut.

    It has only one layer, so `hidden_channels` is ignored.
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

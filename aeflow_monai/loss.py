"""The training objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AEFlowLoss"]


class _Output(Protocol):
    """The part of the network's output that the loss reads."""

    @property
    def log_likelihoods(self) -> Sequence[Tensor]: ...

    @property
    def reconstruction(self) -> Tensor: ...


class AEFlowLoss(nn.Module):
    """Weighted sum of the flow's negative log-likelihood and the reconstruction's mean squared error.

    The likelihood is taken per dimension (nats per channel, mean over positions and stages), so that alpha means
    the same for any encoder and image size.

    Args:
        alpha: weight of the flow's part, in [0, 1]; the reconstruction's is 1 - alpha.

    Raises:
        ValueError: alpha out of its range.

    Example:
        >>> import torch
        >>> from aeflow_monai import AEFlowOutput
        >>> output = AEFlowOutput([], [torch.full((1, 1, 2, 2), -1.5)], torch.zeros(1, 1, 8, 8))
        >>> AEFlowLoss(alpha=0.5)(output, torch.ones(1, 1, 8, 8)).item()
        1.25

    Source: AE-FLOW, ICLR 2023: alpha * L_flow + (1 - alpha) * MSE, alpha 0.5.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha weighs flow against reconstruction and has to be in [0, 1]; got {alpha}.")
        self.alpha = alpha

    @staticmethod
    def flow_loss(output: _Output) -> Tensor:
        """Negative log-likelihood in nats per dimension: a scalar."""
        stages = [-log_likelihood.mean() for log_likelihood in output.log_likelihoods]
        total = stages[0]
        for stage in stages[1:]:
            total = total + stage
        return total / len(stages)

    @staticmethod
    def reconstruction_loss(output: _Output, image: Tensor) -> Tensor:
        """Mean squared error of the reconstruction: a scalar."""
        return F.mse_loss(output.reconstruction.float(), image.float())

    def forward(self, output: _Output, image: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            output: the network's output for the images, see `AEFlowOutput`.
            image: (N, C, H, W) in [0, 1], the target of the reconstruction.

        Returns:
            A scalar.
        """
        return self.alpha * self.flow_loss(output) + (1 - self.alpha) * self.reconstruction_loss(output, image)

"""The training objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AEFlowLoss", "MixtureLoss"]


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


class _Prior(Protocol):
    """The part of a mixture prior that the loss reads."""

    def abnormal_gains(self, latents: Sequence[Tensor]) -> list[Tensor]: ...


class MixtureLoss(nn.Module):
    """The objective with labelled abnormal images: normal images as ever, of abnormal ones the flow's part only.

    Normal images have the likelihood of the normal component, abnormal ones that of the mixture. The decoder is not
    shown how to reconstruct abnormal images. Without any in the batch it is the loss of the normal images, bit by bit.

    Args:
        normal: the loss of normal images.
        prior: of the latents, see `MixturePrior`.
        weight: of the mean likelihood of abnormal images, against that of normal ones, above 0.

    Raises:
        ValueError: weight is not above 0.

    Source: FlowGMM (see `MixturePrior`), ICML 2020: the likelihood of each image given its label.
    """

    def __init__(self, normal: AEFlowLoss, prior: _Prior, weight: float = 0.25) -> None:
        super().__init__()
        if weight <= 0:
            raise ValueError(f"weight is that of labelled abnormal images and has to be above 0; got {weight}.")
        self.normal = normal
        self.prior = prior
        self.weight = weight

    def flow_loss(self, output: Any, target: Any) -> Tensor:
        """Negative log-likelihood of the normal images, in nats per dimension: a scalar."""
        return self.normal.flow_loss(_images(output, ~_abnormal(target, output)))

    def reconstruction_loss(self, output: Any, target: Any) -> Tensor:
        """Mean squared error of the normal images' reconstruction: a scalar."""
        normal = ~_abnormal(target, output)
        return self.normal.reconstruction_loss(_images(output, normal), _image(target)[normal])

    def abnormal_loss(self, output: Any, target: Any) -> Tensor:
        """Negative log-likelihood of the abnormal images under the mixture, in nats per dimension: a scalar."""
        abnormal = _images(output, _abnormal(target, output))
        gains = self.prior.abnormal_gains(abnormal.latents)
        stages = [-(lik + gain).mean() for lik, gain in zip(abnormal.log_likelihoods, gains, strict=True)]
        return torch.stack(stages).mean()

    def forward(self, output: Any, target: Any) -> Tensor:
        """Compute the loss.

        Args:
            output: the network's output for the images, see `AEFlowOutput`.
            target: the images (N, C, H, W) in [0, 1], all of them normal; or the images and which of them are
                abnormal, (N,) of bool, at least one of them normal.

        Returns:
            A scalar.

        Raises:
            ValueError: all images are abnormal.
        """
        abnormal = _abnormal(target, output)
        if abnormal.all():
            raise ValueError(
                f"Expected a normal image in each batch; got {len(abnormal)} abnormal ones alone. Raise batch_size to "
                "2 or more."
            )
        if not abnormal.any():
            return self.normal(output, _image(target))  # type: ignore[no-any-return]
        loss = self.normal(_images(output, ~abnormal), _image(target)[~abnormal])
        return loss + self.weight * self.normal.alpha * self.abnormal_loss(output, target)  # type: ignore[no-any-return]


def _image(target: Any) -> Tensor:
    image: Tensor = target if isinstance(target, Tensor) else target[0]
    return image


def _abnormal(target: Any, output: Any) -> Tensor:
    if isinstance(target, Tensor):
        return torch.zeros(len(target), dtype=torch.bool, device=output.reconstruction.device)
    abnormal: Tensor = target[1].to(output.reconstruction.device)
    return abnormal


def _images(output: Any, chosen: Tensor) -> Any:
    """The network's output for some of the images."""
    if chosen.all():
        return output
    parts = ([t[chosen] for t in part] if isinstance(part, list) else part[chosen] for part in output)
    return type(output)(*parts)

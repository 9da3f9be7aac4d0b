"""The training objective, and the prior of the latents that it uses where something abnormal is learned from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.processes import n_processes, summed

__all__ = ["AEFlowLoss", "MixtureLoss", "MixturePrior"]

_UNTOUCHED = 0.01  # a position with a smaller fraction of lesion is normal


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
        >>> from aeflow_monai.network.aeflow import AEFlowOutput
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
                (F.conv2d(latent.float(), mean.to(latent.device).view(1, -1, 1, 1)) - 0.5 * mean.square().sum())
                / len(mean)
                for latent, mean in zip(latents, self.means, strict=True)
            ]


class MixtureLoss(nn.Module):
    """The objective with abnormal images too: normal images as ever, of abnormal ones the flow's part only.

    Of the normal ones those are reconstructed that the network was asked to, see `AEFlow.forward`.

    Normal images have the likelihood of the normal component. Of an abnormal image the abnormal positions have that of
    the abnormal component, and what lies beside its lesions that of the normal one; a position with a smaller
    fraction of lesion than `least` counts as neither. The decoder is not shown how to reconstruct abnormal images.
    Without any in the batch it is the loss of the normal images.

    Args:
        normal: the loss of normal images.
        prior: of the latents, see `MixturePrior`.
        weight: of the mean likelihood of abnormal positions, and of that of the normal ones beside them, against that
            of normal images, above 0.
        least: fraction of a position's pixels that makes it abnormal, in (0, 1].
        all_processes: take each mean over the images of all processes of torch.distributed, so that gradients which are
            averaged over the processes are those of one process with all images. Every process has to call it then.

    Raises:
        ValueError: a number out of its range.

    Source: FlowGMM (see `MixturePrior`), ICML 2020: the likelihood of each image given its label; here of a position.
    """

    def __init__(
        self,
        normal: AEFlowLoss,
        prior: MixturePrior,
        weight: float = 0.5,
        least: float = 0.15,
        all_processes: bool = False,
    ) -> None:
        super().__init__()
        if weight <= 0:
            raise ValueError(f"weight is that of abnormal images and has to be above 0; got {weight}.")
        if not 0 < least <= 1:
            raise ValueError(f"least is a fraction of a position's pixels and has to be in (0, 1]; got {least}.")
        self.normal = normal
        self.prior = prior
        self.weight = weight
        self.least = least
        self.all_processes = all_processes

    def flow_loss(self, output: Any, target: Any) -> Tensor:
        """Negative log-likelihood of the normal images, in nats per dimension: a scalar."""
        chosen = ~_is_abnormal(target, output)
        return self._mean_of(lambda images, _: self.normal.flow_loss(images), output, target, chosen)

    def reconstruction_loss(self, output: Any, target: Any) -> Tensor:
        """Mean squared error of the normal images' reconstruction: a scalar, 0 if none was to be reconstructed."""
        chosen = ~_is_abnormal(target, output)
        chosen = chosen if output.is_target is None else chosen & output.is_target
        return self._mean_of(self.normal.reconstruction_loss, output, target, chosen)

    def abnormal_loss(self, output: Any, target: Any) -> Tensor:
        """Negative log-likelihood of abnormal images, each position given its label, in nats per dimension: a scalar.

        The mean over abnormal positions, and that over normal ones beside them, are added.
        """
        chosen = _is_abnormal(target, output)
        abnormal = _images(output, chosen)
        lesion = target[1].to(chosen.device)[chosen].float()
        stages = []
        for likelihood, ratio in zip(abnormal.log_likelihoods, self.prior.log_ratios(abnormal.latents), strict=True):
            covered = F.adaptive_avg_pool2d(lesion, likelihood.shape[-2:])
            parts = ((likelihood + ratio, covered >= self.least), (likelihood, covered < _UNTOUCHED))
            # a stage may have no position of a kind: small lesions, or images that are abnormal all over
            means = [-torch.where(of, term, 0).sum() / self._per_process(of.sum(), least=1) for term, of in parts]
            stages.append(torch.stack(means).sum())
        return torch.stack(stages).mean()

    def forward(self, output: Any, target: Any) -> Tensor:
        """Compute the loss.

        Args:
            output: the network's output for the images, see `AEFlowOutput`.
            target: the images (N, C, H, W) in [0, 1], all of them normal; or the images and what of them is abnormal,
                (N, 1, H, W) in [0, 1], at least one of them normal all over.

        Returns:
            A scalar.

        Raises:
            ValueError: all images are abnormal.
        """
        abnormal = _is_abnormal(target, output)
        n_normal, n_abnormal = self._per_process(torch.stack([(~abnormal).sum(), abnormal.sum()])).tolist()
        if not n_normal:
            raise ValueError(
                f"Expected a normal image in each batch; got {len(abnormal)} abnormal ones alone. Raise batch_size to "
                "2 or more, or set lesion_copies to 0."
            )
        alpha = self.normal.alpha
        loss = alpha * self.flow_loss(output, target) + (1 - alpha) * self.reconstruction_loss(output, target)
        if not n_abnormal:
            return loss
        return loss + self.weight * alpha * self.abnormal_loss(output, target)

    def _mean_of(self, loss: Callable[[Any, Tensor], Tensor], output: Any, target: Any, chosen: Tensor) -> Tensor:
        """The mean loss of the chosen images, weighed by how many of all processes' are here."""
        images = _images(output, chosen)
        per_process = self._per_process(chosen.sum()) if self.all_processes else None
        if not chosen.any():  # nothing, with a gradient of 0 for every parameter, which other processes wait for
            nothing: Tensor = sum(part.sum() for part in (images.reconstruction, *images.log_likelihoods))
            return nothing
        mean = loss(images, _image(target)[chosen])
        return mean if per_process is None else mean * chosen.sum() / per_process

    def _per_process(self, counts: Tensor, least: int = 0) -> Tensor:
        """Counts, in the mean of all processes if these count together."""
        if not self.all_processes:
            return counts.clamp_min(least)
        return summed(counts.float()).clamp_min(least) / n_processes()


def _image(target: Any) -> Tensor:
    image: Tensor = target if isinstance(target, Tensor) else target[0]
    return image


def _is_abnormal(target: Any, output: Any) -> Tensor:
    """Which images have something abnormal: (N,) of bool."""
    device = output.reconstruction.device
    if isinstance(target, Tensor):
        return torch.zeros(len(target), dtype=torch.bool, device=device)
    abnormal: Tensor = target[1].to(device).flatten(1).amax(dim=1) > 0
    return abnormal


def _images(output: Any, chosen: Tensor) -> Any:
    """The network's output for some of the images."""
    if chosen.all():
        return output
    parts = (
        part[chosen] if isinstance(part, Tensor) else None if part is None else [t[chosen] for t in part]
        for part in output
    )
    return type(output)(*parts)

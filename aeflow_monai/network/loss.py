"""The training objective, and the mixture prior for training with abnormal images or synthetic lesions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.processes import n_processes, summed

__all__ = ["AEFlowLoss", "MixtureLoss", "MixturePrior"]

_UNTOUCHED = 0.01  # a position with a smaller fraction of lesion counts as normal


class _Output(Protocol):
    """The fields of the network's output that the loss reads."""

    @property
    def log_likelihoods(self) -> Sequence[Tensor]: ...

    @property
    def reconstruction(self) -> Tensor: ...


class AEFlowLoss(nn.Module):
    """Weighted sum of the flow's negative log-likelihood and the mean squared error of the reconstruction.

    The likelihood is per dimension (nats per channel, mean over positions and stages), so that alpha has the same
    meaning for any encoder and image size.

    Args:
        alpha: weight of the flow's loss, in [0, 1]; the reconstruction has 1 - alpha.

    Raises:
        ValueError: alpha is out of range.

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
        """Compute the negative log-likelihood in nats per dimension, a scalar."""
        stages = [-log_likelihood.mean() for log_likelihood in output.log_likelihoods]
        total = stages[0]
        for stage in stages[1:]:
            total = total + stage
        return total / len(stages)

    @staticmethod
    def reconstruction_loss(output: _Output, image: Tensor) -> Tensor:
        """Compute the mean squared error of the reconstruction, a scalar."""
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

    Both components have the covariance I, so only the latent's position along one direction distinguishes them. The
    abnormal mean is drawn once and stays fixed: the flow can map features anywhere, so a learned mean would add nothing
    except a way for the two components to collapse.

    Args:
        channels: channels of each stage's latent.
        distance: distance between the two means, in standard deviations per channel (root mean square), above 0.
        seed: seed of the means.

    Raises:
        ValueError: no stage, or a number out of range.

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
        """Return the mean of the abnormal component, (C_i,) for each stage; that of the normal component is 0."""
        return [self.get_buffer(f"mean_{stage}") for stage in range(self.n_stages)]

    def log_ratios(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Compute the log-likelihood ratio of the components, log N(z'; mean, I) - log N(z'; 0, I).

        Both components share the flow's log-determinant, so this is also the ratio of the features' likelihoods.

        Args:
            latents: z' of each stage, (N, C_i, h_i, w_i).

        Returns:
            For each stage (N, 1, h_i, w_i), in nats per channel; above 0 where the abnormal component is more likely.
        """
        # in half precision the small difference of large terms would be lost
        with torch.autocast(latents[0].device.type, enabled=False):
            return [
                (F.conv2d(latent.float(), mean.to(latent.device).view(1, -1, 1, 1)) - 0.5 * mean.square().sum())
                / len(mean)
                for latent, mean in zip(latents, self.means, strict=True)
            ]


class MixtureLoss(nn.Module):
    """Training objective with abnormal images: both losses for normal images, only the flow's for abnormal ones.

    Only those normal images count for the reconstruction that the network was asked to reconstruct, see
    `AEFlow.forward`.

    For normal images the likelihood is that of the normal component. For an abnormal image, abnormal positions have the
    likelihood of the abnormal component, and positions outside its lesions that of the normal one; a position with a
    smaller fraction of lesion than `least` counts as neither. The decoder is never trained on abnormal images. For a
    batch without any, this is the loss of the normal images.

    Args:
        normal: the loss of normal images.
        prior: the prior of the latents, see `MixturePrior`.
        weight: weight of the mean likelihood of abnormal positions, and of that of the normal positions of abnormal
            images, relative to normal images, above 0.
        least: fraction of a position's pixels that makes it abnormal, in (0, 1].
        all_processes: take each mean over the images of all processes of torch.distributed, so that the averaged
            gradients are those of one process with all images. All processes then have to call it together.

    Raises:
        ValueError: a number out of range.

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
        """Compute the negative log-likelihood of the normal images in nats per dimension, a scalar."""
        chosen = ~_is_abnormal(target, output)
        return self._mean_of(lambda images, _: self.normal.flow_loss(images), output, target, chosen)

    def reconstruction_loss(self, output: Any, target: Any) -> Tensor:
        """Compute the mean squared error of the normal images' reconstructions, a scalar; 0 if there are none."""
        chosen = ~_is_abnormal(target, output)
        chosen = chosen if output.is_target is None else chosen & output.is_target
        return self._mean_of(self.normal.reconstruction_loss, output, target, chosen)

    def abnormal_loss(self, output: Any, target: Any) -> Tensor:
        """Compute the negative log-likelihood of abnormal images, given each position's label, in nats per dimension.

        The mean over abnormal positions and the mean over the normal positions of the same images are added, to a
        scalar.
        """
        chosen = _is_abnormal(target, output)
        abnormal = _images(output, chosen)
        lesion = target[1].to(chosen.device)[chosen].float()
        stages = []
        for likelihood, ratio in zip(abnormal.log_likelihoods, self.prior.log_ratios(abnormal.latents), strict=True):
            covered = F.adaptive_avg_pool2d(lesion, likelihood.shape[-2:])
            parts = ((likelihood + ratio, covered >= self.least), (likelihood, covered < _UNTOUCHED))
            # a stage may lack positions of one kind: lesions may be small, or cover the whole image
            means = [-torch.where(of, term, 0).sum() / self._per_process(of.sum(), least=1) for term, of in parts]
            stages.append(torch.stack(means).sum())
        return torch.stack(stages).mean()

    def forward(self, output: Any, target: Any) -> Tensor:
        """Compute the loss.

        Args:
            output: the network's output for the images, see `AEFlowOutput`.
            target: the images (N, C, H, W) in [0, 1], all of them normal; or a pair of the images and their abnormal
                fractions, (N, 1, H, W) in [0, 1], where at least one image is entirely normal.

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
        """Return the mean loss of the chosen images, weighted by this process's share of those of all processes."""
        images = _images(output, chosen)
        per_process = self._per_process(chosen.sum()) if self.all_processes else None
        if not chosen.any():  # 0, with a zero gradient for every parameter, since other processes wait for it
            nothing: Tensor = sum(part.sum() for part in (images.reconstruction, *images.log_likelihoods))
            return nothing
        mean = loss(images, _image(target)[chosen])
        return mean if per_process is None else mean * chosen.sum() / per_process

    def _per_process(self, counts: Tensor, least: int = 0) -> Tensor:
        """Return the counts, or their mean over all processes if these count together."""
        if not self.all_processes:
            return counts.clamp_min(least)
        return summed(counts.float()).clamp_min(least) / n_processes()


def _image(target: Any) -> Tensor:
    image: Tensor = target if isinstance(target, Tensor) else target[0]
    return image


def _is_abnormal(target: Any, output: Any) -> Tensor:
    """Return which images have an abnormal position, (N,), boolean."""
    device = output.reconstruction.device
    if isinstance(target, Tensor):
        return torch.zeros(len(target), dtype=torch.bool, device=device)
    abnormal: Tensor = target[1].to(device).flatten(1).amax(dim=1) > 0
    return abnormal


def _images(output: Any, chosen: Tensor) -> Any:
    """Return the network's output for the chosen images."""
    if chosen.all():
        return output
    parts = (
        part[chosen] if isinstance(part, Tensor) else None if part is None else [t[chosen] for t in part]
        for part in output
    )
    return type(output)(*parts)

"""All maps of a slice, also its saliency: how its score changes with each pixel, finer than the latent's grid."""

from __future__ import annotations

import torch
from monai.visualize import SmoothGrad, VanillaGrad
from torch import Tensor, nn

from aeflow_monai.scoring import AnomalyScorer

__all__ = ["SALIENCIES", "MapScorer"]

SALIENCIES = ("plain", "smooth")


class MapScorer(nn.Module):
    """All maps of an `AnomalyScorer` as one network, for inferers that call a network and take a dictionary.

    Args:
        scorer: the calibrated network; it is shared, not copied.
        saliency: add the map "saliency": the absolute gradient of the slice score with respect to the image, mean over
            channels, (N, 1, H, W), in score (standard deviations) per unit of intensity. "plain" is the gradient itself;
            "smooth" its mean over noisy copies of the image, which costs as many passes as there are copies. None: no
            such map.
        n_samples: noisy copies of the smooth gradient.
        noise: their standard deviation, as a share of the image's range.

    Raises:
        ValueError: unknown saliency.

    Source: Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", 2014; Smilkov et al., "SmoothGrad", 2017.
    """

    def __init__(
        self, scorer: AnomalyScorer, saliency: str | None = None, n_samples: int = 16, noise: float = 0.05
    ) -> None:
        super().__init__()
        if saliency is not None and saliency not in SALIENCIES:
            raise ValueError(f"Unknown saliency {saliency!r}: choose one of {list(SALIENCIES)}, or null for none.")
        self.scorer = scorer
        self.saliency = saliency
        self.n_samples = n_samples
        self.noise = noise

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """See `AnomalyScorer.maps`; and "saliency", if asked for."""
        maps = self.scorer.maps(image)
        if self.saliency is not None:
            maps["saliency"] = self._saliency(image)
        return maps

    def _saliency(self, image: Tensor) -> Tensor:
        target = _SliceScore(self.scorer)
        if self.saliency == "plain":
            gradient = VanillaGrad(target)
        else:
            gradient = SmoothGrad(target, stdev_spread=self.noise, n_samples=self.n_samples, verbose=False)
        devices = [image.device] if image.is_cuda else []
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)  # the same image gives the same map
            found = [gradient(one[None].detach().clone(), index=0) for one in image]
        return torch.cat(found).abs().mean(dim=1, keepdim=True).to(image)


class _SliceScore(nn.Module):
    """The slice score as a class score (N, 1), which MONAI's gradients are taken of."""

    def __init__(self, scorer: AnomalyScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, image: Tensor) -> Tensor:
        return self.scorer.slice_scores(self.scorer(image))[:, None]

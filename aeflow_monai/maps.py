"""All maps of a slice, also its saliency: how its score changes with each pixel, finer than the latent's grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aeflow_monai.scoring import AnomalyScorer
from aeflow_monai.slicing import Places, foreground_of

__all__ = ["MapScorer"]

SALIENCIES = ("plain", "smooth")


class MapScorer(nn.Module):
    """All maps of an `AnomalyScorer` as one network, for inferers that call a network and take a dictionary.

    Saliency is that of each slice by itself: it does not see that maps are blurred through the slices of a volume.

    Args:
        scorer: the calibrated network; it is shared, not copied.
        saliency: add the map "saliency": the absolute gradient of the slice score with respect to the image, mean over
            channels, (N, 1, H, W), in score (standard deviations) per unit of intensity. "plain" takes the gradient at
            the image itself; "smooth" its mean over noisy copies of the image, which costs as many passes as there are
            copies. None: no such map.
        n_samples: noisy copies of the smooth gradient, 1 or more.
        noise: their standard deviation, as a share of each image's range.

    Raises:
        ValueError: unknown saliency, or no noisy copy.

    Source: Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", 2014, section 3;
    Smilkov et al., "SmoothGrad", 2017.
    """

    def __init__(
        self, scorer: AnomalyScorer, saliency: str | None = None, n_samples: int = 16, noise: float = 0.05
    ) -> None:
        super().__init__()
        if saliency is not None and saliency not in SALIENCIES:
            raise ValueError(f"Unknown saliency {saliency!r}: choose one of {list(SALIENCIES)}, or null for none.")
        if n_samples < 1:
            raise ValueError(f"n_samples has to be 1 or more; got {n_samples}.")
        self.scorer = scorer
        self.saliency = saliency
        self.n_samples = n_samples
        self.noise = noise

    def forward(self, image: Tensor, places: Places | None = None) -> dict[str, Tensor]:
        """See `AnomalyScorer.maps`; and "saliency", if asked for."""
        maps = self.scorer.maps(image, places)
        if self.saliency is not None:
            maps["saliency"] = self._saliency(image, places)
        return maps

    def finish(
        self, weighted_sum: Tensor, dissimilarity: Tensor, foreground: Tensor, places: Places | None
    ) -> dict[str, Tensor]:
        """See `AnomalyScorer.finish`."""
        return self.scorer.finish(weighted_sum, dissimilarity, foreground, places)

    def _saliency(self, image: Tensor, places: Places | None) -> Tensor:
        if self.saliency == "plain":
            return self._gradient(image, places).abs().mean(dim=1, keepdim=True)
        deviation = self.noise * (image.amax(dim=(1, 2, 3), keepdim=True) - image.amin(dim=(1, 2, 3), keepdim=True))
        # the same noise for each image: its map depends neither on its neighbours nor on the run
        generator = torch.Generator().manual_seed(0)
        deviation = deviation * foreground_of(image)  # black stays black: noise would make tissue of it
        total = torch.zeros_like(image)
        for _ in range(self.n_samples):
            noise = torch.randn(image.shape[1:], generator=generator).to(image)
            total += self._gradient(image + deviation * noise, places)
        return (total / self.n_samples).abs().mean(dim=1, keepdim=True)

    def _gradient(self, image: Tensor, places: Places | None) -> Tensor:
        """Gradient of each slice score with respect to its own image (N, C, H, W); parameters get none."""
        with torch.enable_grad():
            image = image.detach().requires_grad_()
            scores = self.scorer.maps(image, places)["slice_scores"]
            return torch.autograd.grad(scores.sum(), image)[0]

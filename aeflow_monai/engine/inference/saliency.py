"""Saliency: the change of a slice's score with each of its pixels, finer than the latents' grid."""

from __future__ import annotations

import torch
from torch import Tensor

from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.geometry import Places
from aeflow_monai.score.stack import foreground_of

__all__ = ["require_saliency", "saliency"]

SALIENCIES = ("plain", "smooth")
_N_SAMPLES = 16  # noisy copies for the smooth gradient
_NOISE = 0.05  # standard deviation of the noise, as a fraction of each image's range


def require_saliency(kind: str | None) -> None:
    """Raise an error for an unknown kind of saliency; None is for no saliency map.

    Raises:
        ValueError: an unknown kind; names those that exist.
    """
    if kind is not None and kind not in SALIENCIES:
        raise ValueError(f"Unknown saliency {kind!r}: choose one of {list(SALIENCIES)}, or null for none.")


def saliency(detector: Detector, image: Tensor, places: Places | None = None, kind: str = "plain") -> Tensor:
    """Compute the absolute gradient of each slice's score with respect to its own pixels, mean over channels.

    Each slice is scored by itself: the blur through the slices of a volume is not taken into account.

    Args:
        detector: a calibrated detector.
        image: slices, (N, C, H, W) in [0, 1].
        places: places of the slices, see `Detector.infer`.
        kind: "plain" for the gradient at the image itself; "smooth" for the mean over 16 noisy copies of it.

    Returns:
        (N, 1, H, W), in score (standard deviations of normals) per unit of intensity.

    Raises:
        ValueError: an unknown kind.

    Source: Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", 2014, section 3; Smilkov et al.,
    "SmoothGrad", 2017.
    """
    require_saliency(kind)
    if kind == "plain":
        return _gradient(detector, image, places).abs().mean(dim=1, keepdim=True)
    deviation = _NOISE * (image.amax(dim=(1, 2, 3), keepdim=True) - image.amin(dim=(1, 2, 3), keepdim=True))
    deviation = deviation * foreground_of(image)  # black stays black: noise would look like tissue
    # the same noise for each image, so that its map depends neither on its batch nor on the run
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros_like(image)
    for _ in range(_N_SAMPLES):
        noise = torch.randn(image.shape[1:], generator=generator).to(image)
        total += _gradient(detector, image + deviation * noise, places)
    return (total / _N_SAMPLES).abs().mean(dim=1, keepdim=True)


def _gradient(detector: Detector, image: Tensor, places: Places | None) -> Tensor:
    """Return the gradient of each slice's score with respect to the image (N, C, H, W), and none of the parameters."""
    with torch.enable_grad():
        image = image.detach().requires_grad_()
        scores = detector.score(detector.stack(image, places)).slice_scores
        return torch.autograd.grad(scores.sum(), image)[0]

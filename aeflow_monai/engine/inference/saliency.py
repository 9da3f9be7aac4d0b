"""Saliency: how a slice's score changes with each of its pixels, finer than the latents' grid."""

from __future__ import annotations

import torch
from torch import Tensor

from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.geometry import Places
from aeflow_monai.score.stack import foreground_of

__all__ = ["require_saliency", "saliency"]

SALIENCIES = ("plain", "smooth")
_N_SAMPLES = 16  # noisy copies of the smooth gradient
_NOISE = 0.05  # their standard deviation, as a fraction of each image's range


def require_saliency(kind: str | None) -> None:
    """Refuse an unknown kind of saliency; None stands for no such map.

    Raises:
        ValueError: names the kinds.
    """
    if kind is not None and kind not in SALIENCIES:
        raise ValueError(f"Unknown saliency {kind!r}: choose one of {list(SALIENCIES)}, or null for none.")


def saliency(detector: Detector, image: Tensor, places: Places | None = None, kind: str = "plain") -> Tensor:
    """Absolute gradient of each slice's score with respect to its own pixels, mean over channels.

    It is that of each slice by itself: it does not see that maps are blurred through the slices of a volume.

    Args:
        detector: calibrated.
        image: slices, (N, C, H, W) in [0, 1].
        places: of the slices, see `Detector.infer`.
        kind: "plain" takes the gradient at the image itself; "smooth" the mean over 16 noisy copies of the image.

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
    deviation = deviation * foreground_of(image)  # black stays black: noise would make tissue of it
    # the same noise for each image: its map depends neither on its neighbours nor on the run
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros_like(image)
    for _ in range(_N_SAMPLES):
        noise = torch.randn(image.shape[1:], generator=generator).to(image)
        total += _gradient(detector, image + deviation * noise, places)
    return (total / _N_SAMPLES).abs().mean(dim=1, keepdim=True)


def _gradient(detector: Detector, image: Tensor, places: Places | None) -> Tensor:
    """Gradient of each slice's score with respect to its own image (N, C, H, W); parameters get none."""
    with torch.enable_grad():
        image = image.detach().requires_grad_()
        scores = detector.score(detector.stack(image, places)).slice_scores
        return torch.autograd.grad(scores.sum(), image)[0]

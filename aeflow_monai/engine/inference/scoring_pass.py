"""One pass from images to what their scores are made of, in a form that other runtimes can execute."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.network.folded import FoldedAEFlow
from aeflow_monai.score.pooled_features import pooled_features
from aeflow_monai.score.ssim import ssim_map
from aeflow_monai.score.stack import foreground_of
from aeflow_monai.score.tissue import mean_in_foreground

__all__ = ["MAPS_OF_PASS", "ScoringPass", "maps_of_pass"]

# Additional maps of a pass, on request; see `Detector.infer`.
MAPS_OF_PASS = ("reconstruction", "residual", "log_likelihood")


def maps_of_pass(names: Sequence[str]) -> list[str]:
    """Return maps in the order of a pass's outputs.

    Raises:
        ValueError: an unknown map.
    """
    if unknown := [name for name in names if name not in MAPS_OF_PASS]:
        raise ValueError(f"Unknown map {unknown[0]!r}: choose of {list(MAPS_OF_PASS)}.")
    return [name for name in MAPS_OF_PASS if name in names]


class ScoringPass(nn.Module):
    """Compute the results of `Detector.infer` with folded layers, without the unused ones.

    The flow's terms are weighted and summed over the channels at the resolution of their stage, before they are
    interpolated to the image's size.

    Args:
        detector: a trained detector, which is copied.
        maps: which of `MAPS_OF_PASS` to compute.
        image_size: rows and columns of the images, for an encoder that requires a fixed size.

    Raises:
        ValueError: an unknown map.

    Example:
        >>> import torch
        >>> from aeflow_monai.network import AEFlow, Encoder
        >>> from aeflow_monai.score import Score
        >>> detector = Detector(AEFlow(Encoder(), n_steps=2), Score(n_terms=3)).eval()
        >>> given = ScoringPass(detector, maps=["residual"])(torch.rand(2, 1, 64, 64))
        >>> [tuple(tensor.shape) for tensor in given]
        [(2, 1, 64, 64), (2,), (2, 152, 4), (2, 1, 64, 64)]
    """

    def __init__(
        self, detector: Detector, maps: Sequence[str] = MAPS_OF_PASS, image_size: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.names = maps_of_pass(maps)
        self.of_likelihood = detector.flow_term == "likelihood"
        self.network = FoldedAEFlow(detector.network, self.of_likelihood or "log_likelihood" in maps, image_size)
        factors, offset = detector.score.term_factors()
        self.factors = [float(factor) for factor in factors]
        # the constant of the Gaussian log-density does not depend on the image
        constant = 0.0 if self.of_likelihood else 0.5 * math.log(2 * math.pi) * sum(self.factors[:-1])
        self.offset = float(offset) - constant

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute what the scores of images are made of.

        Args:
            image: (N, C, H, W) in [0, 1].

        Returns:
            The weighted sum of the terms (N, 1, H, W), the dissimilarity (N,) and the pooled features (N, channels,
            parts), see `SliceStack`; then the chosen maps in the order of `MAPS_OF_PASS`.
        """
        output = self.network(image)
        if self.of_likelihood:
            terms = [-likelihood for likelihood in output.log_likelihoods]
        else:
            terms = [0.5 * latent.square().mean(dim=1, keepdim=True) for latent in output.latents]
        unlike = 1 - ssim_map(output.reconstruction, image)
        total = self.factors[-1] * unlike - self.offset
        for factor, term in zip(self.factors, terms, strict=False):  # the last factor is that of the reconstruction
            total = total + _to_size_of(image, factor * term)
        given = [total, mean_in_foreground(unlike, foreground_of(image)), pooled_features(output.features)]
        for name in self.names:
            if name == "reconstruction":
                given.append(output.reconstruction)
            elif name == "residual":
                given.append((image - output.reconstruction).abs().mean(dim=1, keepdim=True))
            else:
                given.append(_mean_at_size_of(image, output.log_likelihoods))
        return tuple(given)


def _to_size_of(image: Tensor, term: Tensor) -> Tensor:
    size = [int(length) for length in image.shape[-2:]]  # constant in a runtime's model
    return F.interpolate(term, size=size, mode="bilinear", align_corners=False)


def _mean_at_size_of(image: Tensor, maps: Sequence[Tensor]) -> Tensor:
    total = _to_size_of(image, maps[0])
    for each in maps[1:]:
        total = total + _to_size_of(image, each)
    return total / len(maps)

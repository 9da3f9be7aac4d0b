"""A detector with its score as one module from images to maps and scores, which `aeflow export` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.engine.inference.scoring_pass import ScoringPass
from aeflow_monai.geometry import PLANES, Places
from aeflow_monai.score.position import PositionNorm, blur_through_slices
from aeflow_monai.score.stack import SliceStack, foreground_of
from aeflow_monai.score.top_fractions import top_means

__all__ = ["OUTPUTS_OF_PLANE", "OUTPUTS_OF_WHOLE", "WholeModel"]

# of one plane whose map is averaged with those of the others before anything is scored
OUTPUTS_OF_PLANE = ("anomaly_map", "ease", "global_terms")
OUTPUTS_OF_WHOLE = (
    *("anomaly_map", "slice_scores", "ease", "map_scores", "global_terms"),
    *("case_score", "case_map_score", "case_global_term"),
)


class WholeModel(nn.Module):
    """A calibrated detector for the slices of one plane of a volume, or for 2D images.

    It combines `Detector.infer`, `Detector.finish` and `Score.case_score`, in operations that ONNX has. If volumes are
    scored by the mean of several planes' maps, a plane has no scores of its own.

    Args:
        detector: a calibrated detector; its network is copied.
        plane: "axial", "coronal" or "sagittal" for volumes; None for 2D images.
        image_size: see `ScoringPass`.

    Attributes:
        outputs: names of what it returns.

    Example:
        >>> from aeflow_monai.network import AEFlow, Encoder
        >>> from aeflow_monai.score import Score
        >>> whole = WholeModel(Detector(AEFlow(Encoder(), n_steps=2), Score(n_terms=3)).eval(), "axial")
        >>> given = whole(torch.rand(5, 1, 64, 64), torch.linspace(0, 1, 5))
        >>> {name: tuple(tensor.shape) for name, tensor in zip(whole.outputs, given)}["case_score"]
        (1,)
    """

    def __init__(self, detector: Detector, plane: str | None, image_size: Sequence[int] | None = None) -> None:
        super().__init__()
        self.plane = plane
        self.scoring_pass = ScoringPass(detector, [], image_size)
        self.score = detector.score
        self.outputs = OUTPUTS_OF_PLANE if bool(self.score.of_mean_map) else OUTPUTS_OF_WHOLE
        self.top_fractions, self.case_top_fraction = self.score.top_fractions, self.score.case_top_fraction
        number = [*PLANES].index(plane or "axial")
        self.position_norm = _NormOfPlane(detector.score.position_norm, number)
        self.dissimilarity_norm = _NormOfPlane(detector.score.dissimilarity_norm, number)
        self.eval()

    def forward(self, image: Tensor, position: Tensor | None = None) -> tuple[Tensor, ...]:
        """Score images.

        Args:
            image: (N, C, H, W) in [0, 1]; for a volume all processed slices of the plane, in order.
            position: for volumes the relative slice positions, (N,), see `Places`.

        Returns:
            The `outputs`: those of slices as in `SliceScores`; the score of the case and its two parts, from maps and
            from global terms, (1,) each, or (N,) for 2D images.
        """
        weighted_sum, dissimilarity, pooled = self.scoring_pass(image)
        positions = image.new_full((1,), 0.5) if position is None else position
        score = self.score
        if position is not None and not score.published:
            weighted_sum = blur_through_slices(weighted_sum, Places([], position), score.slice_sigma)
        # these norms take positions in place of `Places`, since their plane is fixed
        places: Any = positions
        stack = SliceStack(weighted_sum, dissimilarity, foreground_of(image), places, pooled)
        anomaly_map = score.anomaly_map(stack, self.position_norm)
        ease = score.ease(stack, self.dissimilarity_norm)
        terms = score.global_terms(stack)
        height, width = (int(length) for length in image.shape[-2:])
        static_map = anomaly_map.reshape(-1, 1, height, width)  # gives the outputs of a model a static shape
        if self.outputs == OUTPUTS_OF_PLANE:
            return static_map, ease, terms
        # computed here, since the score would select the top fractions by the kind of data
        map_scores = score.map_scores(top_means(anomaly_map, self.top_fractions), ease)
        slice_scores = score.joined(map_scores, terms)
        if self.plane is None:
            of_case = (slice_scores, map_scores, terms)
        else:
            of_maps, of_terms = _highest_mean(map_scores, self.case_top_fraction), terms.mean(dim=0, keepdim=True)
            of_case = (score.joined(of_maps, of_terms), of_maps, of_terms)
        return (static_map, slice_scores, ease, map_scores, terms, *of_case)


class _NormOfPlane(PositionNorm):
    """A `PositionNorm` of one plane that interpolates by a matrix product."""

    def __init__(self, norm: PositionNorm, plane: int) -> None:
        super().__init__(norm.mean.shape[-1])
        self.mean, self.std = norm.mean[plane].clone(), norm.std[plane].clone()
        self.register_buffer("everywhere", norm.is_known)
        self.register_buffer("bins", torch.arange(len(self.mean), dtype=self.mean.dtype))

    def forward(self, maps: Tensor, places: Any = None) -> Tensor:
        """Standardise maps (N, 1, H, W) of slices, with their positions in place of their places."""
        bins = self.get_buffer("bins")
        place = places.clamp(0, 1)[:, None] * (len(bins) - 1)
        weights = (1 - (place - bins).abs()).clamp_min(0)  # linear interpolation of the two nearest
        size = [int(length) for length in maps.shape[-2:]]
        fields = []
        for field in (self.mean, self.std):
            at_position = (weights @ field.flatten(1)).unflatten(1, (1, *field.shape[1:]))
            fields.append(F.interpolate(at_position, size, mode="bilinear", align_corners=False))
        return (maps - fields[0]) / fields[1]

    @property
    def is_known(self) -> Tensor:
        """Return whether enough normals of all planes are known."""
        return self.get_buffer("everywhere")


def _highest_mean(scores: Tensor, fraction: float) -> Tensor:
    """Compute the mean of the highest fraction of scores (n,), as (1,), for a dynamic n, which top-k does not allow."""
    ones = torch.ones_like(scores)
    count = torch.ceil(fraction * ones.sum() - 1e-4).clamp_min(1)  # n is below 10,000, and rounding below 1e-4
    index = ones.cumsum(dim=0)
    before = (scores[None] > scores[:, None]) | ((scores[None] == scores[:, None]) & (index[None] < index[:, None]))
    is_high = (before.to(scores.dtype).sum(dim=1) < count).to(scores.dtype)
    return ((scores * is_high).sum() / count)[None]

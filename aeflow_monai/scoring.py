"""The score, and nothing else defines it: network output -> calibrated anomaly map -> slice score -> case score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.aeflow import AEFlow, AEFlowOutput
from aeflow_monai.checkpoint import require_same_network, require_same_score, require_same_version
from aeflow_monai.flow import standard_normal_log_density
from aeflow_monai.position import PositionNorm, blur_through_slices
from aeflow_monai.prior import MixturePrior
from aeflow_monai.slicing import Places, foreground_of
from aeflow_monai.ssim import ssim_map

__all__ = ["AnomalyScorer", "Measured", "scores_by_plane", "top_mean"]

SCORINGS = ("latent", "likelihood", "paper")
# Options that change scores but no other tensor, as the checkpoint has them behind `scoring`: it must not be scored
# with others than its own.
SETTINGS = ("beta", "by_position", "slice_sigma", "ease_weight", "level_weight", "case_share")

_EASE_MARGIN = 1.5  # so many standard deviations easier to reconstruct than the mean is still normal; a choice


class Measured(NamedTuple):
    """What the network says of slices, of which their maps and scores are made."""

    weighted_sum: Tensor  # of the map's terms, (N, 1, H, W)
    dissimilarity: Tensor  # of slice and reconstruction, 1 - SSIM: mean over the foreground, (N,); 0 without any


class AnomalyScorer(nn.Module):
    """AE-Flow with everything that turns its output into a calibrated anomaly map and scores.

    The map is a weighted sum of terms, each brought to image size and standardised by its mean and standard
    deviation on held-out normals: one flow term per stage, in nats per channel, and one reconstruction term,
    1 - SSIM::

        sum = (beta * mean over stages of standardised(flow) + (1 - beta) * standardised(1 - SSIM)) / map_std
        deviation = (blurred through the slices of a volume(sum) - mean at the same place of normals) / std there
        map = deviation - (1 - level_weight) * mean of deviation over the slice's foreground

    Outside of the tissue, where only black lies between a pixel and the border, the map is 0 at most.

    0 is what is typical of normals at this place, larger is more anomalous, in standard deviations of normals there.
    A slice's score is how high the map is, over a few of its pixels or over all of them: for each of `slice_shares`
    the mean of this share of its highest values, standardised by that of held-out normal slices; and of these the mean.
    So it rises with a small lesion, and with a faint change of everything. A slice that is easier to reconstruct than
    normals are, as a blurred one, is abnormal too: by how many standard deviations beyond 1.5, times `ease_weight`, is
    added.

    Nothing of it depends on the other images of a batch. Means, deviations and thresholds are buffers: they are part
    of the checkpoint. Before `calibrate` has filled them, maps and scores are in no unit and thresholds are infinite.

    Args:
        aeflow: the network.
        beta: weight of the flow term, in [0, 1].
        scoring: the flow term. "latent" is -log N(z'; 0, I), without the log-determinant, as in the published score: it
            is not misled by diffuse changes that make an image smoother, hence more likely. "likelihood" is the
            negative log-likelihood of the features. "paper" is the published score itself in log space,
            beta * (-log N(z'; 0, I)) + (1 - beta) * (-SSIM); neither it nor its slice scores are standardised.
        slice_shares: of a slice's highest map values, each in (0, 1]; 1 takes the mean of the whole slice.
        case_share: a case's score is the mean of this share of its highest slice scores, in (0, 1].
        by_position: standardise the map by place, where that predicts held-out normals better than its mean and
            deviation anywhere; else by these.
        slice_sigma: of the blur through the slices of a volume, as a share of the distance from the first slice that is
            looked at to the last, 0 or more; 0 for none.
        ease_weight: weight, in a slice's score, of being unusually easy to reconstruct, 0 or more. The published score
            has 0.
        level_weight: of a slice's mean in its map, above 0, at most 1. All of a slice is higher or lower in one patient
            than in another, and by more than a small lesion changes it; 1 where a disease changes all of an image.
        abnormal_distance: of the prior's two components, see `MixturePrior`.

    Raises:
        ValueError: unknown scoring, or a number out of its range.

    Example:
        >>> from aeflow_monai import AEFlow, Encoder
        >>> scorer = AnomalyScorer(AEFlow(Encoder(), n_steps=2))
        >>> maps = scorer.maps(torch.rand(3, 1, 64, 64))
        >>> tuple(maps["anomaly_map"].shape), tuple(maps["slice_scores"].shape)
        ((3, 1, 64, 64), (3,))

    Source: AE-FLOW, ICLR 2023, section 3 (the published score); calibration and thresholds are this project's.
    """

    score_settings: Tensor
    score_shares: Tensor
    term_mean: Tensor
    term_std: Tensor
    map_std: Tensor
    share_mean: Tensor
    share_std: Tensor
    map_threshold: Tensor
    slice_threshold: Tensor
    case_threshold: Tensor
    case_rank: Tensor

    def __init__(
        self,
        aeflow: AEFlow,
        beta: float = 0.9,
        scoring: str = "latent",
        slice_shares: Sequence[float] = (1.0,),
        case_share: float = 1.0,
        by_position: bool = True,
        slice_sigma: float = 0.03,
        ease_weight: float = 2.0,
        level_weight: float = 0.5,
        abnormal_distance: float = 2.0,
    ) -> None:
        super().__init__()
        if scoring not in SCORINGS:
            raise ValueError(f"Unknown scoring {scoring!r}: choose one of {list(SCORINGS)}.")
        if not 0 <= beta <= 1:
            raise ValueError(f"beta weighs the flow term and has to be in [0, 1]; got {beta}.")
        if isinstance(slice_shares, (int, float)) or not slice_shares:
            raise ValueError(f"slice_shares is a list of one or more shares, as [0.05, 1.0]; got {slice_shares!r}.")
        for name, share in (*(("slice_shares", share) for share in slice_shares), ("case_share", case_share)):
            if not 0 < share <= 1:
                raise ValueError(f"{name}: a share of the highest values has to be in (0, 1]; got {share}.")
        if not 0 <= slice_sigma < math.inf:
            raise ValueError(f"slice_sigma is the width of a blur and has to be 0 or more; got {slice_sigma}.")
        if not 0 <= ease_weight < math.inf:
            raise ValueError(f"ease_weight weighs what is too easy and has to be 0 or more; got {ease_weight}.")
        if not 0 < level_weight <= 1:
            raise ValueError(f"level_weight is the share of a slice's mean in its map, in (0, 1]; got {level_weight}.")
        self.aeflow = aeflow
        self.prior = MixturePrior(aeflow.encoder.channels, abnormal_distance)
        self.position = PositionNorm()  # of maps
        self.usual_dissimilarity = PositionNorm(grid=1)  # of slices, by height
        self.beta = float(beta)
        self.scoring = scoring
        self.slice_shares = tuple(float(share) for share in slice_shares)
        self.case_share = float(case_share)
        self.by_position = bool(by_position)
        self.slice_sigma = float(slice_sigma)
        self.ease_weight = float(ease_weight)
        self.level_weight = float(level_weight)
        n_terms = len(aeflow.flows) + 1
        settings = [SCORINGS.index(scoring), *(getattr(self, name) for name in SETTINGS)]
        self.register_buffer("score_settings", torch.tensor(settings, dtype=torch.float64))
        self.register_buffer("score_shares", torch.tensor(self.slice_shares, dtype=torch.float64))
        self.register_buffer("term_mean", torch.zeros(n_terms))
        self.register_buffer("term_std", torch.ones(n_terms))
        self.register_buffer("map_std", torch.tensor(1.0))
        self.register_buffer("share_mean", torch.zeros(len(self.slice_shares)))
        self.register_buffer("share_std", torch.ones(len(self.slice_shares)))
        self.register_buffer("map_threshold", torch.tensor(math.inf))
        self.register_buffer("slice_threshold", torch.tensor(math.inf))
        self.register_buffer("case_threshold", torch.tensor(math.inf))
        # of the case threshold among the scores of held-out patients, and their number: what it promises
        self.register_buffer("case_rank", torch.zeros(2, dtype=torch.long))

    @property
    def is_calibrated(self) -> bool:
        """Whether the thresholds were fitted, which the end of a training does."""
        return math.isfinite(float(self.case_threshold))

    @property
    def is_standardised(self) -> bool:
        """Whether maps and slice scores are in standard deviations of normals: all but the published score are."""
        return self.scoring != "paper"

    def forward(self, image: Tensor, places: Places | None = None) -> Tensor:
        """Anomaly map (N, 1, H, W) of images (N, C, H, W) in [0, 1]; for `places` see `anomaly_map`."""
        return self.anomaly_map(self.aeflow(image), image, places)

    def maps(self, image: Tensor, places: Places | None = None) -> dict[str, Tensor]:
        """All maps of images.

        Args:
            image: (N, C, H, W) in [0, 1].
            places: of the slices, see `anomaly_map`.

        Returns:
            "anomaly_map" (N, 1, H, W), calibrated; "weighted_sum" (N, 1, H, W) and "dissimilarity" (N,), from which
            `finish` makes the map and scores of a volume's slices, see `Measured`; "reconstruction" (N, C, H, W) in
            [0, 1]; "residual" (N, 1, H, W), the absolute difference of image and reconstruction, mean over channels;
            "log_likelihood" (N, 1, H, W), in nats per channel, mean over stages; "slice_scores" (N,); and "ease" (N,),
            which these hold too, but not the published score's.
        """
        output = self.aeflow(image)
        residual = (image - output.reconstruction).abs().mean(dim=1, keepdim=True)
        terms = self.terms(output, image)
        # the flow terms are the negative log-likelihoods themselves, or not
        likelihood = self.scoring == "likelihood"
        log_likelihood = -terms[:, :-1] if likelihood else self._to_image_size(output.log_likelihoods, image)
        measured = self._measured(terms, image)
        return {
            **self._finished(measured.weighted_sum, measured.dissimilarity, foreground_of(image), places),
            **measured._asdict(),
            "reconstruction": output.reconstruction,
            "residual": residual,
            "log_likelihood": log_likelihood.mean(dim=1, keepdim=True),
        }

    def terms(self, output: AEFlowOutput, image: Tensor) -> Tensor:
        """The map's terms at image size, not standardised.

        Args:
            output: of `AEFlow` for the images.
            image: (N, C, H, W) in [0, 1].

        Returns:
            (N, stages + 1, H, W): the flow term of each stage, then the reconstruction term.
        """
        if self.scoring == "likelihood":
            flow_terms = [-likelihood for likelihood in output.log_likelihoods]
        else:
            flow_terms = [-standard_normal_log_density(latent) / latent.shape[1] for latent in output.latents]
        flow = self._to_image_size(flow_terms, image)
        dissimilarity = 1 - ssim_map(output.reconstruction, image)
        return torch.cat([flow, dissimilarity], dim=1)

    def term_weights(self) -> Tensor:
        """Weight of each standardised term: beta spread over the stages, 1 - beta for the reconstruction."""
        n_stages = len(self.term_mean) - 1
        weights = torch.full_like(self.term_mean, self.beta / n_stages)
        weights[-1] = 1 - self.beta
        return weights

    def anomaly_map(self, output: AEFlowOutput, image: Tensor, places: Places | None = None) -> Tensor:
        """The anomaly map from the network's output.

        Args:
            output: of `AEFlow` for the images.
            image: (N, C, H, W) in [0, 1].
            places: where the slices lie in their volumes; None for images that are of no volume.

        Returns:
            (N, 1, H, W); of slices by themselves, see `finish` for those of a volume.
        """
        return self.standardised(self.measure(output, image).weighted_sum, foreground_of(image), places)

    def measure(self, output: AEFlowOutput, image: Tensor) -> Measured:
        """What maps and scores are made of, from the network's output for images (N, C, H, W)."""
        return self._measured(self.terms(output, image), image)

    def through_slices(self, weighted_sum: Tensor, places: Places | None) -> Tensor:
        """Weighted sums of the slices of one plane of a volume (n, 1, H, W), blurred; see `blur_through_slices`."""
        return blur_through_slices(weighted_sum, places, self.slice_sigma) if self.is_standardised else weighted_sum

    def standardised(
        self, weighted_sum: Tensor, foreground: Tensor, places: Places | None = None, usual: PositionNorm | None = None
    ) -> Tensor:
        """Weighted sums as anomaly maps.

        Args:
            weighted_sum: (N, 1, H, W).
            foreground: of the images, (N, 1, H, W), see `foreground_of`.
            places: of the slices, see `anomaly_map`.
            usual: what to compare with, in place of the scorer's own.

        Returns:
            (N, 1, H, W).
        """
        if not self.is_standardised:
            return weighted_sum
        deviation: Tensor = (usual or self.position)(weighted_sum, places)
        level = (1 - self.level_weight) * _mean(deviation, foreground).view(-1, 1, 1, 1)
        # outside of the tissue nothing is taken off: wide margins would turn a high level into a low mean
        return torch.where(_is_tissue(foreground), deviation - level, deviation.clamp_max(0))

    def ease(
        self,
        dissimilarity: Tensor,
        foreground: Tensor,
        places: Places | None = None,
        usual: PositionNorm | None = None,
    ) -> Tensor:
        """How much easier to reconstruct slices are than those of normals at the same height.

        Args:
            dissimilarity: of slices, (N,), see `Measured`.
            foreground: of the slices, (N, 1, H, W), see `foreground_of`.
            places: of the slices, see `anomaly_map`.
            usual: what to compare with, in place of the scorer's own.

        Returns:
            (N,), in standard deviations of normals; below 0 for what is harder, 0 for what is black, and 0 for all
            if the normals were of too few patients to tell.
        """
        norm = usual or self.usual_dissimilarity
        harder: Tensor = norm(dissimilarity.view(-1, 1, 1, 1), places)
        is_known = foreground.flatten(1).any(dim=1) & norm.is_known
        return torch.where(is_known, -harder.flatten(), 0.0)

    def finish(
        self, weighted_sum: Tensor, dissimilarity: Tensor, foreground: Tensor, places: Places | None
    ) -> dict[str, Tensor]:
        """Anomaly map and scores of all the slices of one plane of a volume.

        Args:
            weighted_sum: of the slices, (n, 1, H, W), in their order; see `Measured`.
            dissimilarity: of the slices, (n,).
            foreground: of the slices, (n, 1, H, W), see `foreground_of`.
            places: of the slices.

        Returns:
            "anomaly_map" (n, 1, H, W), "slice_scores" (n,), and "ease" (n,), which these hold too, but not the
            published score's.
        """
        return self._finished(self.through_slices(weighted_sum, places), dissimilarity, foreground, places)

    def _finished(
        self, weighted_sum: Tensor, dissimilarity: Tensor, foreground: Tensor, places: Places | None
    ) -> dict[str, Tensor]:
        anomaly_map = self.standardised(weighted_sum, foreground, places)
        ease = self.ease(dissimilarity, foreground, places)
        finished = {"anomaly_map": anomaly_map, "slice_scores": self.slice_scores(anomaly_map, ease)}
        return {**finished, "ease": ease} if self.is_standardised else finished

    def _measured(self, terms: Tensor, image: Tensor) -> Measured:
        return Measured(self._weighted(terms), _mean(terms[:, -1:], foreground_of(image)))

    def _weighted(self, terms: Tensor) -> Tensor:
        weights = self.term_weights()
        if self.scoring == "paper":
            # the published score has -SSIM where the term is 1 - SSIM
            return (terms * weights.view(1, -1, 1, 1)).sum(dim=1, keepdim=True) - (1 - self.beta)
        factors = weights / (self.term_std * self.map_std)
        offset = (factors * self.term_mean).sum()
        return (terms * factors.view(1, -1, 1, 1)).sum(dim=1, keepdim=True) - offset

    def slice_scores(self, anomaly_map: Tensor, ease: Tensor) -> Tensor:
        """Score of each slice.

        Args:
            anomaly_map: (N, 1, H, W).
            ease: (N,), see `ease`.

        Returns:
            (N,), in standard deviations of held-out normal slices.
        """
        return self.score_of(self.top_means(anomaly_map), ease)

    def top_means(self, anomaly_map: Tensor) -> Tensor:
        """Mean of each of the slice shares of the highest values: (N, 1, H, W) to (N, shares)."""
        return torch.stack([top_mean(anomaly_map.flatten(1), share) for share in self.slice_shares], dim=1)

    def score_of(self, top_means: Tensor, ease: Tensor) -> Tensor:
        """Score of each slice from its `top_means`, (N, shares), and its `ease`, (N,): (N,)."""
        scores = ((top_means - self.share_mean) / self.share_std).mean(dim=1)
        if not self.is_standardised:
            return scores
        return scores + self.ease_weight * (ease - _EASE_MARGIN).clamp_min(0)

    def case_score(self, slice_scores: Mapping[str, Tensor]) -> Tensor:
        """Score of a case from those of its slices.

        Args:
            slice_scores: for each plane ("axial", ...) the scores of its slices, (D,); NaN where a slice was skipped.

        Returns:
            A scalar: of each plane the mean of the highest `case_share` of its scores, and of these the mean; NaN if
            all slices were skipped.
        """
        looked_at = [scores[~scores.isnan()] for scores in slice_scores.values()]
        planes = [top_mean(scores[None], self.case_share)[0] for scores in looked_at if len(scores)]
        return torch.stack(planes).mean() if planes else torch.tensor(math.nan)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint's state, and say what is wrong if it belongs to another architecture.

        Raises:
            ValueError: it is no such checkpoint, tensors are missing, left over, or of another shape, or the score was
            defined otherwise.
        """
        own = self.state_dict()
        if strict:
            require_same_version(state_dict, own)
        if {"score_settings", "score_shares"} <= state_dict.keys():
            require_same_score(*map(self._score_options, (state_dict, own)))
        if strict:
            require_same_network(state_dict, own)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _score_options(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """By name, as somebody reads them."""
        scoring, *numbers = state_dict["score_settings"].tolist()
        if len(numbers) != len(SETTINGS):
            raise ValueError(
                f"The checkpoint was trained by another version, whose score had {len(numbers) + 1} options where this "
                f"has {len(SETTINGS) + 1}: train again."
            )
        named = {name: type(getattr(self, name))(number) for name, number in zip(SETTINGS, numbers, strict=True)}
        return {"scoring": SCORINGS[int(scoring)], **named, "slice_shares": state_dict["score_shares"].tolist()}

    @staticmethod
    def _to_image_size(maps: Sequence[Tensor], image: Tensor) -> Tensor:
        size = image.shape[-2:]
        return torch.cat(
            [F.interpolate(m.float(), size=size, mode="bilinear", align_corners=False) for m in maps], dim=1
        )


def _mean(maps: Tensor, foreground: Tensor) -> Tensor:
    """Mean of each map over its foreground, 0 if there is none: (N, 1, H, W) twice to (N,)."""
    counted = foreground.to(maps.dtype)
    return (maps * counted).sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp_min(1)


def _is_tissue(foreground: Tensor) -> Tensor:
    """Pixels with foreground on all four sides, or of it; all of an image that has none: (N, 1, H, W), boolean."""
    height, width = foreground.shape[-2:]
    rows = torch.arange(height, device=foreground.device, dtype=torch.int16).view(-1, 1)
    columns = torch.arange(width, device=foreground.device, dtype=torch.int16)
    tissue = torch.ones_like(foreground)
    for dim, place in ((-2, rows), (-1, columns)):
        first = torch.where(foreground, place, foreground.shape[dim]).amin(dim, keepdim=True)
        last = torch.where(foreground, place, -1).amax(dim, keepdim=True)
        tissue = tissue & (place >= first) & (place <= last)
    return tissue | ~foreground.flatten(1).any(dim=1).view(-1, 1, 1, 1)


def scores_by_plane(output: Mapping[Any, Any], name: str = "slice_scores") -> dict[str, Tensor]:
    """The scores of slices among what an inferer gives for a volume, for `AnomalyScorer.case_score`.

    Args:
        output: with the scores of each plane under "slice_scores_<plane>", any shape.
        name: of other numbers of slices, in place of "slice_scores".

    Returns:
        From plane ("axial", ...) to its scores, on the CPU.
    """
    prefix = f"{name}_"
    found = {str(key): value for key, value in output.items() if str(key).startswith(prefix)}
    return {key.removeprefix(prefix): torch.as_tensor(scores).cpu() for key, scores in found.items()}


def top_mean(values: Tensor, share: float) -> Tensor:
    """Mean of the highest share of each row, at least one value: (N, M) to (N,)."""
    count = max(1, math.ceil(share * values.shape[1]))
    if count == values.shape[1]:
        return values.mean(dim=1)
    return values.topk(count, dim=1).values.mean(dim=1)

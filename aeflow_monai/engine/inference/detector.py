"""A detector: a network with the score that is calibrated for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.inference.stacked_maps import mean_over_planes
from aeflow_monai.geometry import Places
from aeflow_monai.network.aeflow import AEFlow, AEFlowOutput
from aeflow_monai.network.flow import standard_normal_log_density
from aeflow_monai.progress import tracked
from aeflow_monai.score.calibration import calibrate_score
from aeflow_monai.score.normal_slices import NormalSlices, PooledSlices
from aeflow_monai.score.pooled_features import pooled_features
from aeflow_monai.score.score import Score, SliceScores
from aeflow_monai.score.ssim import ssim_map
from aeflow_monai.score.stack import SliceStack, foreground_of

__all__ = ["Detector", "calibrate"]

FLOW_TERMS = ("latent", "likelihood")


class Detector(nn.Module):
    """AE-Flow with its calibrated score: computes anomaly maps and scores from images.

    Args:
        network: AE-Flow.
        score: score of its maps, with one flow term per encoder stage and that of the reconstruction, 1 - SSIM.
        flow_term: "latent" is -log N(z'; 0, I) in nats per channel, without the log-determinant, as in the published
            score: diffuse changes that make an image smoother, and hence more likely, do not lower it. "likelihood" is
            the negative log-likelihood of the features.

    Raises:
        ValueError: an unknown flow term, or a score with a different number of terms.

    Example:
        >>> from aeflow_monai.network import Encoder
        >>> detector = Detector(AEFlow(Encoder(), n_steps=2), Score(n_terms=3))
        >>> maps = detector.maps(torch.rand(3, 1, 64, 64))
        >>> tuple(maps["anomaly_map"].shape), tuple(maps["slice_scores"].shape)
        ((3, 1, 64, 64), (3,))
    """

    def __init__(self, network: AEFlow, score: Score, flow_term: str = "latent") -> None:
        super().__init__()
        if flow_term not in FLOW_TERMS:
            raise ValueError(f"Unknown flow_term {flow_term!r}: choose one of {list(FLOW_TERMS)}.")
        if score.n_terms != len(network.flows) + 1:
            raise ValueError(
                f"The score takes {score.n_terms} terms, but a network of {len(network.flows)} encoder stages gives "
                f"{len(network.flows) + 1}. Set n_terms of the score to that."
            )
        self.network = network
        self.score = score
        self.flow_term = flow_term

    @property
    def device(self) -> torch.device:
        """Return the device of the detector."""
        return self.score.term_mean.device

    def forward(self, image: Tensor, places: Places | None = None) -> Tensor:
        """Compute anomaly maps (N, 1, H, W) of images (N, C, H, W) in [0, 1]; for `places` see `infer`."""
        return self.score.anomaly_map(self.stack(image, places))

    def stack(
        self, image: Tensor, places: Places | None = None, features: Sequence[Tensor] | None = None
    ) -> SliceStack:
        """Compute what the scores of images are made of.

        Args:
            image: (N, C, H, W) in [0, 1].
            places: where the slices lie in their volumes; None for 2D images.
            features: precomputed encoder features of the images; see `AEFlow.forward`.
        """
        output = self.network(image, features)
        terms, pooled = self.terms(output, image), pooled_features(output.features)
        return self.score.stack(terms, foreground_of(image), places, pooled)

    def infer(self, image: Tensor, places: Places | None = None) -> tuple[SliceStack, dict[str, Tensor]]:
        """Run the network on slices, before those of a volume are scored together by `finish`.

        Args:
            image: (N, C, H, W) in [0, 1].
            places: where the slices lie in their volumes; None for 2D images.

        Returns:
            The stack that scores are made of, and the maps that are already final: "reconstruction" (N, C, H, W) in [0,
            1], "residual" (N, 1, H, W), the absolute difference of image and reconstruction, mean over channels, and
            "log_likelihood" (N, 1, H, W), in nats per channel, mean over stages.
        """
        output = self.network(image)
        terms = self.terms(output, image)
        # with "likelihood" the flow terms are the negative log-likelihoods, so they are not computed twice
        is_likelihood = self.flow_term == "likelihood"
        log_likelihood = -terms[:, :-1] if is_likelihood else _to_image_size(output.log_likelihoods, image)
        maps = {
            "reconstruction": output.reconstruction,
            "residual": (image - output.reconstruction).abs().mean(dim=1, keepdim=True),
            "log_likelihood": log_likelihood.mean(dim=1, keepdim=True),
        }
        return self.score.stack(terms, foreground_of(image), places, pooled_features(output.features)), maps

    def finish(self, stack: SliceStack) -> SliceScores:
        """Compute anomaly maps and scores of all slices of one plane of a volume, in order."""
        return self.score(self.score.blurred(stack))  # type: ignore[no-any-return]

    def maps(self, image: Tensor, places: Places | None = None) -> dict[str, Tensor]:
        """Compute all maps and scores of images, each by itself; for the arguments see `infer`.

        Returns:
            "anomaly_map" (N, 1, H, W), "slice_scores", "ease", "map_scores" and "global_terms", (N,) each, see
            `SliceScores`, and the maps of `infer`.
        """
        stack, maps = self.infer(image, places)
        return {**self.score(stack)._asdict(), **maps}

    def terms(self, output: AEFlowOutput, image: Tensor) -> Tensor:
        """Compute the terms of the anomaly map at image size, not standardised.

        Args:
            output: output of `AEFlow` for the images.
            image: (N, C, H, W) in [0, 1].

        Returns:
            (N, stages + 1, H, W): the flow term of each stage, then that of the reconstruction.
        """
        if self.flow_term == "likelihood":
            flow_terms = [-likelihood for likelihood in output.log_likelihoods]
        else:
            flow_terms = [-standard_normal_log_density(latent) / latent.shape[1] for latent in output.latents]
        return torch.cat([_to_image_size(flow_terms, image), 1 - ssim_map(output.reconstruction, image)], dim=1)


def calibrate(
    detector: Detector,
    held_out: Iterable[Mapping[str, Any]],
    specificity: float = 0.95,
    fitted: Iterable[Mapping[str, Any]] = (),
    trained: Iterable[Mapping[str, Any]] = (),
    varied: Iterable[Mapping[str, Any]] = (),
    slicer: Slicer | None = None,
) -> dict[str, float]:
    """Calibrate a trained detector on held-out normals; see `calibrate_score`.

    Args:
        detector: the detector, which is set to evaluation mode and back.
        held_out: batches, dictionaries with "image" (N, C, H, W) in [0, 1], "case" (N names), optionally "patient" (N
            names, if a patient has several cases), "file" (N paths, if a case has several images), "axis" and
            "relative_position" (N planes and relative slice positions, see `Places`), "slice" and "volume_shape" (N
            slice numbers, and X, Y, Z of their volumes) and precomputed "features" (see `AEFlow.forward`). They are
            iterated over three times, with a run of the network each time, and must hold normals only, the slices of
            one plane, and the planes of one volume, one after the other.
        specificity: fraction of normals that the thresholds should classify as normal, in (0, 1).
        fitted: batches of normals that the detector was trained on, in the same form.
        trained: batches of all normals that it was trained on, of which only the encoder's features are used.
        varied: batches of their acquisition copies, likewise, see `VariedSlices`.
        slicer: the slicer that the slices were cut with. With several planes, volumes are scored by the mean of their
            maps; if None, each plane is scored separately.

    Returns:
        The scores of the held-out images by "file", or by "case" without it.

    Raises:
        ValueError: no batches, or an iterator that can be used only once; specificity out of range; images or
            statistics that are not finite. The detector is then restored.
    """
    was_training = detector.training
    detector.eval()
    try:
        of_held_out, of_fitted = (
            batches if isinstance(batches, Iterator) else _Normals(detector, batches) for batches in (held_out, fitted)
        )
        pooled = chain(_pooled(detector, trained), _pooled(detector, varied, are_copies=True))
        over_planes = None if slicer is None or len(slicer.axes) == 1 else partial(_over_planes, slicer)
        return calibrate_score(detector.score, of_held_out, specificity, of_fitted, pooled, over_planes)
    finally:
        detector.train(was_training)


def _pooled(
    detector: Detector, batches: Iterable[Mapping[str, Any]], are_copies: bool = False
) -> Iterator[PooledSlices]:
    """Yield pooled features of batches of normals; the encoder runs where they were not precomputed."""
    for batch in tracked(batches, "normals"):
        features = batch.get("features")
        if features is None:
            features = detector.network.encoder(torch.as_tensor(batch["image"]).to(detector.device))
        yield PooledSlices(pooled_features(features), batch.get("patient", batch["case"]), are_copies)


class _Normals:
    """Batches of normals as `calibrate_score` takes them; each iteration runs the network."""

    def __init__(self, detector: Detector, batches: Iterable[Mapping[str, Any]]) -> None:
        self.detector = detector
        self.batches = batches

    def __iter__(self) -> Iterator[NormalSlices]:
        device = self.detector.device
        for batch in tracked(self.batches, "calibration"):
            image = torch.as_tensor(batch["image"]).to(device)
            is_finite = torch.isfinite(image).flatten(1).all(dim=1)
            if not is_finite.all():
                case = batch["case"][is_finite.tolist().index(False)]
                raise ValueError(f"The image of case {case} holds NaN or infinite values: mend it, or leave it out.")
            features = batch.get("features")
            kept = None if features is None else [stage.to(device).float() for stage in features]
            output = self.detector.network(image, kept)
            yield NormalSlices(
                self.detector.terms(output, image),
                foreground_of(image),
                batch.get("patient", batch["case"]),
                batch.get("file", batch["case"]),
                places_of(batch),
                pooled_features(output.features),
                _grid_of(batch),
            )


def _over_planes(
    slicer: Slicer, maps: Mapping[str, Tensor], grids: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    shape = next(iter(grids.values()))[0, 1:].tolist()
    return mean_over_planes(slicer, shape, maps, {plane: grid[:, 0] for plane, grid in grids.items()})


def _grid_of(batch: Mapping[str, Any]) -> Tensor | None:
    """Return the number of each slice and the shape of its volume, (N, 4), see `NormalSlices`; None if unknown."""
    if "volume_shape" not in batch:
        return None
    return torch.stack([torch.as_tensor(numbers) for numbers in (batch["slice"], *batch["volume_shape"])], dim=1)


def places_of(batch: Mapping[str, Any]) -> Places | None:
    """Return the places of a batch of slices from "axis" and "relative_position" (N,) of `SliceDataset`, or None."""
    return Places(batch["axis"], torch.as_tensor(batch["relative_position"])) if "relative_position" in batch else None


def _to_image_size(maps: Sequence[Tensor], image: Tensor) -> Tensor:
    size = image.shape[-2:]
    return torch.cat([F.interpolate(m.float(), size=size, mode="bilinear", align_corners=False) for m in maps], dim=1)

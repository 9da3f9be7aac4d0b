"""Inference of a detector on the slices of a volume, with the results as a volume again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor

from aeflow_monai import progress
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.engine.inference.fast_inference import FastInference, Runtimes
from aeflow_monai.engine.inference.picture_warning import note_on_image
from aeflow_monai.engine.inference.saliency import require_saliency, saliency
from aeflow_monai.engine.inference.scoring_pass import MAPS_OF_PASS
from aeflow_monai.engine.inference.side_by_side import side_by_side, sides_of
from aeflow_monai.engine.inference.slice_collector import UNNAMED, Output, SliceCollector
from aeflow_monai.engine.inference.stacked_maps import StackedMap, mean_over_planes
from aeflow_monai.geometry import Places
from aeflow_monai.score.score import Score, SliceScores
from aeflow_monai.score.stack import SliceStack

__all__ = ["SlicedInferer"]

_logger = logging.getLogger(__name__)
_KNOWN = (
    "An image has the features of one that the model was trained or calibrated on, as the same image has in another "
    "format or size. Its score is lower than that of a new one, and no test. Further ones are not named."
)
# Far above the threshold, in standard deviations of normals: for a 2D image, of which one in 1030 abnormal ones of the
# panel is farther (seed 0), and for the median slice of a volume, which a lesion does not raise.
_FAR, _FAR_SLICES = 10.0, 5.0
_OF_SLICES = ("anomaly_map", "slice_scores", "ease", "global_terms")  # fields of `SliceScores` in the output
Network = Callable[..., Output]


class SlicedInferer(Inferer):  # type: ignore[misc]
    """Run a detector on the chosen slices of a volume, and combine the results.

    Skipped slices are filled with 0. With several planes each voxel gets the mean over the planes that cover it, and
    slices are scored by that mean if the detector was calibrated so. The slices of a plane are scored together, since
    maps are blurred through them.

    Any other network, for example another method, may take the detector's place: it is called with slices (n, C, H, W)
    and their `Places`, and returns maps (n, c, H, W), or a dictionary of maps and of numbers per slice (n,).

    Args:
        slicer: the slicing policy.
        batch_size: number of slices that are processed at a time. On a CPU of several cores, and without gradients,
            they are processed as two halves in parallel, so the network has to be thread-safe, as modules in evaluation
            mode are.
        saliency: add the map "saliency", "plain" or "smooth" (`engine.inference.saliency`); none if None.
        runtime: the runtime for a detector's network, one of `aeflow_monai.engine.inference.runtimes.RUNTIMES`.
        outputs: names of the requested outputs of a detector; residual and log-likelihood are computed only if they are
            named. If None, all maps are computed.

    Attributes:
        notes: warnings of images unlike those that the model was trained on, in order of their occurrence.

    Raises:
        ValueError: batch_size below 1, or an unknown saliency or runtime.
        ModuleNotFoundError: the runtime is not installed.

    Example:
        >>> inferer = SlicedInferer(Slicer(["axial", "coronal", "sagittal"], image_size=[32, 32], fit="pad"))
        >>> volume = torch.rand(1, 1, 20, 24, 16)
        >>> torch.allclose(inferer(volume, lambda slices, places: slices), volume)
        True
    """

    def __init__(
        self,
        slicer: Slicer,
        batch_size: int = 4,
        saliency: str | None = None,
        runtime: str = "torch",
        outputs: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size has to be 1 or more; got {batch_size}.")
        require_saliency(saliency)
        self.slicer = slicer
        self.batch_size = batch_size
        self.saliency = saliency
        maps = [name for name in MAPS_OF_PASS if outputs is None or name in outputs or name == "reconstruction"]
        self.runtimes = Runtimes(runtime, maps, slicer.image_size)
        self.notes: list[str] = []
        self.noted: set[str] = set()

    def __call__(self, inputs: Tensor, network: Detector | Network, *args: Any, **kwargs: Any) -> Output:
        """Score a volume.

        Args:
            inputs: (1, C, X, Y, Z), oriented to PLS, in [0, 1].
            network: a calibrated detector, or another network.
            args: further arguments for another network.
            kwargs: further arguments for another network.

        Returns:
            For a detector: "anomaly_map" and the maps of `Detector.infer`, (1, c, X, Y, Z); for each plane
            "slice_scores_<plane>", "ease_<plane>" and, if known, "global_terms_<plane>", (1, slices), NaN where a slice
            was skipped; and the numbers of `Score.verdict`, (1,). For another network its own output: maps (1, c, X, Y,
            Z) and numbers per slice under "<name>_<plane>".

        Raises:
            ValueError: more than one volume, a volume of other dimensions, no slice to process, or a detector that is
                not calibrated.
        """
        output = self.stacks(inputs, network, *args, **kwargs)
        stacks, indices = output.pop("stacks"), {plane: numbers[0] for plane, numbers in output.pop("indices").items()}
        maps: dict[str, Tensor] = {}
        for name in list(stacks):
            of_planes = {plane: stack[0] for plane, stack in stacks.pop(name).items()}
            pasted = StackedMap(self.slicer, inputs[0], of_planes, indices).pasted()
            # keeps the volume's affine with its maps
            maps[name] = convert_to_dst_type(pasted[None], inputs)[0]
        return maps[UNNAMED] if maps.keys() == {UNNAMED} else {**maps, **output}

    def stacks(self, inputs: Tensor, network: Detector | Network, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Score a volume, and keep the maps as slices for `StackMapsd`.

        Args:
            inputs: see `__call__`, also for everything below.
            network: a calibrated detector, or another network.
            args: further arguments for another network.
            kwargs: further arguments for another network.

        Returns:
            Numbers as from `__call__`; under "stacks" a dictionary from the name of each map ("" if a network returns a
            single tensor) to a dictionary from each plane to its slices (1, n, c, H, W); under "indices" from each
            plane to the numbers of its slices along the plane's axis, (1, n).

        Raises:
            ValueError: see `__call__`.
        """
        detector = network if isinstance(network, Detector) else None
        _check(inputs, detector)
        volume = inputs[0].as_subclass(Tensor)
        axes = self.slicer.axes_of(volume)
        found = SliceCollector(self.slicer, volume)
        fast = None if detector is None else self.runtimes.of(detector)
        finished: dict[str, SliceScores] = {}
        of_case: dict[str, Tensor] = {}
        pooled: list[Tensor] = []  # of the slices of each plane
        for axis in axes:
            indices = self.slicer.chosen(volume, axis)
            if not len(indices):  # torch.split would make one empty batch
                if detector is not None and self.slicer.slice_range is not None and axis == axes[0] and len(axes) > 1:
                    raise ValueError(
                        f"No {axis} slice of the volume {tuple(volume.shape[1:])} within the slice range "
                        f"{list(self.slicer.slice_range)} has {self.slicer.min_foreground:.0%} of its pixels above 0, "
                        "and the other planes alone have another score. Give the part of the body that the model was "
                        "trained on."
                    )
                continue
            found.indices[axis] = indices
            if detector is None or fast is None:
                self._look(volume, axis, found, partial(_maps_of, network, args, kwargs))
            else:
                parts: dict[int, SliceStack] = {}  # by the first slice of each batch
                self._look(volume, axis, found, partial(self._infer, detector, fast, parts))
                together = SliceStack.join([parts[first] for first in sorted(parts)])
                finished[axis] = detector.finish(together)
                if together.pooled is not None:
                    pooled.append(together.pooled)
        if detector is not None:
            finished = self._by_mean_map(detector.score, finished, found.indices, volume.shape[1:])
            for axis, scored in finished.items():
                of_slices = {name: getattr(scored, name) for name in _OF_SLICES}
                if not detector.score.knows_global_terms:
                    del of_slices["global_terms"]
                found.add(of_slices, axis, torch.arange(len(found.indices[axis])))
        if not found.stacks:
            raise ValueError(
                f"No slice to process: along {', '.join(axes)} none of the volume {tuple(volume.shape[1:])} has "
                f"{self.slicer.min_foreground:.0%} of its pixels above 0 within the slice range. Crop the image to "
                "what it shows, or train with a lower slicer#min_foreground."
            )
        if detector is not None:
            n_slices = max(map(len, found.indices.values()))
            self._note("kind", partial(_note_on_kind, detector, volume.shape[1:], n_slices))
            self._note("known", partial(_note_on_known, detector, pooled))
            of_case = _of_case(detector, finished)
            self._note("far", partial(_note_on_far, detector.score, finished))
        return {
            "stacks": {
                name: {plane: stack[None] for plane, stack in of_planes.items()}
                for name, of_planes in found.stacks.items()
            },
            "indices": {plane: indices[None] for plane, indices in found.indices.items()},
            **found.numbers,
            **of_case,
        }

    def _by_mean_map(
        self, score: Score, scored: dict[str, SliceScores], indices: Mapping[str, Tensor], shape: Sequence[int]
    ) -> dict[str, SliceScores]:
        """Rescore the slices of each plane by the mean of all planes' maps, if the score is calibrated so."""
        if not score.of_mean_map or shape[-1] == 1 or not scored:
            return scored
        means = mean_over_planes(
            self.slicer, shape, {plane: scores.anomaly_map for plane, scores in scored.items()}, indices
        )
        return {plane: score.rescored(scores, means[plane][0]) for plane, scores in scored.items()}

    def _note(self, about: str, find: Callable[[], str]) -> None:
        """Record and log a warning about an image, once for each kind of warning."""
        if about not in self.noted and (note := find()):
            self.noted.add(about)
            self.notes.append(note)
            _logger.warning(note)

    def _look(
        self, volume: Tensor, axis: str, found: SliceCollector, look: Callable[[Tensor, Places, int], Output]
    ) -> None:
        """Run the network on the chosen slices of a plane, batch by batch."""
        indices = found.indices[axis]
        found.n_done = 0
        positions = self.slicer.places(indices, axis).positions

        def run_batch(some: Tensor) -> None:
            places = Places([axis] * len(some), positions[some])
            slices = self.slicer.slices(volume, axis, indices[some])
            found.add(look(slices, places, int(some[0])), axis, some)
            if len(indices) > self.batch_size:
                progress.advance("slices", found.count(len(some)), len(indices))

        sides = sides_of(volume.device)
        batches = torch.split(torch.arange(len(indices)), math.ceil(self.batch_size / sides))
        side_by_side(run_batch, batches, min(sides, len(batches)))

    def _infer(
        self,
        detector: Detector,
        fast: FastInference,
        parts: dict[int, SliceStack],
        slices: Tensor,
        places: Places,
        first: int,
    ) -> dict[str, Tensor]:
        """Return the final maps of a batch, and keep the stack for the others in `parts`."""
        parts[first], maps = fast.infer(slices, places)
        if self.saliency is not None:
            maps["saliency"] = saliency(detector, slices, places, self.saliency)
        return maps


def _check(inputs: Tensor, detector: Detector | None) -> None:
    if inputs.ndim != 5 or inputs.shape[0] != 1:
        raise ValueError(
            f"Expected one volume (1, C, X, Y, Z); got {tuple(inputs.shape)}. Set the loader's batch_size to 1, "
            "and use EnsureVolumed for 2D images."
        )
    if detector is not None and not detector.score.is_calibrated:
        raise ValueError(
            "The model is not calibrated. Finish its training with --resume <its last checkpoint>, or use the "
            "folder of a finished training."
        )


def _note_on_kind(detector: Detector, shape: Sequence[int], n_slices: int) -> str:
    return note_on_image(detector.score.state_dict(prefix="score."), shape, n_slices)


def _note_on_known(detector: Detector, pooled: Sequence[Tensor]) -> str:
    is_known = [known for plane in pooled for known in detector.score.global_term.knows(plane).tolist()]
    return _KNOWN if sum(is_known) > len(is_known) / 2 else ""


def _note_on_far(score: Score, scored: Mapping[str, SliceScores]) -> str:
    """Describe an image most of whose slices are far above the threshold, as hardly any disease makes them."""
    scores = torch.cat([of_plane.slice_scores for of_plane in scored.values()])
    typical, threshold = float(scores.median()), float(score.slice_threshold)
    if score.published or not typical > threshold + (_FAR if len(scores) == 1 else _FAR_SLICES):
        return ""
    what = "An image has a score" if len(scores) == 1 else "Half of the slices of an image or more have a score"
    return (
        f"{what} of {typical:.1f}, far above the threshold of {threshold:.2f} and all held-out normals. Images of "
        "another scanner, modality or preparation score like this, and disease rarely does. Compare it with images of "
        "the training, or calibrate on normal images of its kind. Further ones are not named."
    )


def _maps_of(network: Network, args: Any, kwargs: Any, slices: Tensor, places: Places, first: int) -> Output:
    return network(slices, places, *args, **kwargs)


def _of_case(detector: Detector, scored: dict[str, SliceScores]) -> dict[str, Tensor]:
    """Return the score of the case, thresholds and p-value, (1,) each."""
    of_case = detector.score.verdict(
        {plane: scores.map_scores for plane, scores in scored.items()},
        {plane: scores.global_terms for plane, scores in scored.items()},
    )
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in of_case.items()}

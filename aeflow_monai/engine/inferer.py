"""A detector over the slices of a volume, and what it says of them as a volume again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.detector import Detector
from aeflow_monai.engine.saliency import require_saliency, saliency
from aeflow_monai.geometry import Places, stack_of
from aeflow_monai.output.case_score import scores_by_plane
from aeflow_monai.score.stack import SliceStack

__all__ = ["SlicedInferer"]

_UNNAMED = ""  # the map of a network that gives one tensor

Network = Callable[..., "Tensor | dict[str, Tensor]"]


class SlicedInferer(Inferer):  # type: ignore[misc]
    """Run a detector over the chosen slices of a volume, and put together what it says of them.

    Skipped slices are filled with 0. With several planes each voxel gets the mean over the planes that saw it. The
    slices of a plane are scored together, since maps are blurred through them.

    Any other network may stand in its place, for example another method: it is called with slices (n, C, H, W) and
    their `Places`, and gives maps (n, c, H, W), or a dictionary of maps and of numbers per slice (n,).

    Args:
        slicer: the slicing policy.
        batch_size: slices that are in the network at a time. On a CPU of several cores, and without gradients, two
            halves of them go through it side by side, so it has to be safe to call from two threads, as modules in
            evaluation mode are.
        saliency: add the map "saliency", "plain" or "smooth", see `aeflow_monai.engine.saliency`; none if None.

    Raises:
        ValueError: batch_size below 1, or an unknown saliency.

    Example:
        >>> inferer = SlicedInferer(Slicer(["axial", "coronal", "sagittal"], image_size=[32, 32], fit="pad"))
        >>> volume = torch.rand(1, 1, 20, 24, 16)
        >>> torch.allclose(inferer(volume, lambda slices, places: slices), volume)
        True
    """

    def __init__(self, slicer: Slicer, batch_size: int = 4, saliency: str | None = None) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size has to be 1 or more; got {batch_size}.")
        require_saliency(saliency)
        self.slicer = slicer
        self.batch_size = batch_size
        self.saliency = saliency

    def __call__(
        self, inputs: Tensor, network: Detector | Network, *args: Any, **kwargs: Any
    ) -> Tensor | dict[str, Tensor]:
        """Look at a volume.

        Args:
            inputs: (1, C, X, Y, Z), oriented to PLS, in [0, 1].
            network: a calibrated detector, or another network.
            args: further arguments of another network.
            kwargs: further arguments of another network.

        Returns:
            Of a detector: "anomaly_map" and the maps of `Detector.infer`, (1, c, X, Y, Z); for each plane
            "slice_scores_<plane>" and "ease_<plane>", (1, slices), NaN where a slice was skipped; "anomaly_score",
            "case_threshold", "slice_threshold" and "map_threshold", (1,). Of another network what it gives: maps
            (1, c, X, Y, Z) and numbers per slice under "<name>_<plane>".

        Raises:
            ValueError: more than one volume, a volume of other dimensions, no slice to process, or a detector that is
                not calibrated.
        """
        if inputs.ndim != 5 or inputs.shape[0] != 1:
            raise ValueError(
                f"Expected one volume (1, C, X, Y, Z); got {tuple(inputs.shape)}. Set the loader's batch_size to 1, "
                "and use EnsureVolumed for 2D images."
            )
        detector = network if isinstance(network, Detector) else None
        if detector is not None and not detector.score.is_calibrated:
            raise ValueError(
                "The model is not calibrated. Finish its training with --resume <its last checkpoint>, or use the "
                "folder of a finished training."
            )
        volume = inputs[0].as_subclass(Tensor)
        axes = self.slicer.axes_of(volume)
        assembly = _Assembly(self.slicer, volume)
        seen = torch.zeros(1, *volume.shape[1:], device=volume.device) if len(axes) > 1 else None
        for axis in axes:
            indices = self.slicer.chosen(volume, axis)
            if not len(indices):  # of which a split would be one empty batch
                continue
            positions = self.slicer.places(indices, axis).positions
            stacks: dict[int, SliceStack] = {}  # by the first slice of each batch

            def run_batch(
                some: Tensor,
                axis: str = axis,
                indices: Tensor = indices,
                positions: Tensor = positions,
                stacks: dict[int, SliceStack] = stacks,
            ) -> None:
                places = Places([axis] * len(some), positions[some])
                slices = self.slicer.slices(volume, axis, indices[some])
                if detector is None:
                    output = network(slices, places, *args, **kwargs)
                else:
                    stacks[int(some[0])], output = detector.infer(slices, places)
                    if self.saliency is not None:
                        output["saliency"] = saliency(detector, slices, places, self.saliency)
                assembly.add(output, axis, indices[some])

            sides = _sides(volume.device)
            batches = torch.split(torch.arange(len(indices)), math.ceil(self.batch_size / sides))
            _side_by_side(run_batch, batches, min(sides, len(batches)))
            if detector is not None:
                together = SliceStack.join([stacks[first] for first in sorted(stacks)])
                assembly.add(detector.finish(together)._asdict(), axis, indices)
            if seen is not None:
                stack_of(seen, axis)[indices] += 1
        maps = assembly.maps
        if not maps:
            raise ValueError(
                f"No slice to process: along {', '.join(axes)} none of the volume {tuple(volume.shape[1:])} has "
                f"{self.slicer.min_foreground:.0%} of its pixels above 0 within the slice range. Lower min_foreground, "
                "or check the intensity normalisation."
            )
        if seen is not None:
            for value in maps.values():
                value /= seen.clamp_min(1)
        # where the volume lies goes along with its maps
        batched: dict[str, Tensor] = {name: convert_to_dst_type(value[None], inputs)[0] for name, value in maps.items()}
        if maps.keys() == {_UNNAMED}:
            return batched[_UNNAMED]
        return {**batched, **assembly.numbers, **({} if detector is None else _of_case(detector, assembly.numbers))}


def _of_case(detector: Detector, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    """The score of the case and the thresholds, (1,) each."""
    of_slices = {plane: scores[0] for plane, scores in scores_by_plane(numbers).items()}
    of_case = {"anomaly_score": float(detector.score.case_score(of_slices)), **detector.score.thresholds}
    return {name: torch.tensor([value]) for name, value in of_case.items()}


class _Assembly:
    """What a network says of the slices of a volume (C, X, Y, Z), put together; from several threads too."""

    def __init__(self, slicer: Slicer, volume: Tensor) -> None:
        self.slicer = slicer
        self.volume = volume
        self.maps: dict[str, Tensor] = {}
        self.numbers: dict[str, Tensor] = {}
        self.lock = Lock()

    def add(self, output: Tensor | dict[str, Tensor], axis: str, indices: Tensor) -> None:
        """Add maps and numbers of some slices."""
        with self.lock:
            for name, value in output.items() if isinstance(output, dict) else [(_UNNAMED, output)]:
                if value.ndim == 1:
                    self._add_numbers(name, value, axis, indices)
                    continue
                if name not in self.maps:
                    # in memory slice by slice, as axial slices are pasted and NIfTI is written
                    rows, columns, depth = self.volume.shape[1:]
                    self.maps[name] = value.new_zeros(depth, value.shape[1], rows, columns).permute(1, 2, 3, 0)
                self.slicer.paste(value, self.maps[name], axis, indices)

    def _add_numbers(self, name: str, values: Tensor, axis: str, indices: Tensor) -> None:
        if not torch.isfinite(values).all():  # NaN is kept for slices that were skipped
            raise ValueError(
                f"The network's {name} of {axis} slices are not finite: the image holds NaN, infinite or huge values; "
                "replace them first."
            )
        if f"{name}_{axis}" not in self.numbers:
            # of every plane, also one whose slices are all skipped
            for each in self.slicer.axes_of(self.volume):
                count = self.slicer.count(self.volume, each)
                self.numbers[f"{name}_{each}"] = values.new_full((1, count), math.nan)
        self.numbers[f"{name}_{axis}"][0, indices] = values


def _sides(device: torch.device) -> int:
    """Batches to compute at the same time: on a CPU, two on half of the cores each are faster than one on all."""
    # a graph of gradients is not put together from several threads
    return 2 if device.type == "cpu" and torch.get_num_threads() > 1 and not torch.is_grad_enabled() else 1


def _side_by_side(function: Callable[[Tensor], None], items: Sequence[Tensor], sides: int) -> None:
    """Call a function without gradients for each of the items, in so many threads that share the cores."""
    if sides == 1:
        for item in items:
            function(item)
        return
    n_threads = torch.get_num_threads()
    begun = Barrier(sides + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first question sets it to the number of all
        torch.set_num_threads(max(1, n_threads // sides))
        begun.wait()

    def call(item: Tensor) -> None:
        with torch.no_grad():  # which holds for the thread that says it
            function(item)

    with ThreadPoolExecutor(sides, initializer=begin) as pool:
        calls = pool.map(call, items)
        begun.wait()
        torch.set_num_threads(n_threads)  # of the threads that begin from now on
        for _ in calls:  # which raises what was raised
            pass

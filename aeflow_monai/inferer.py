"""A network over the slices of a volume, and what it says of them as a volume again."""

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

from aeflow_monai.slicing import Places, Slicer, foreground_of, stack_of

__all__ = ["SlicedInferer"]

_UNFINISHED = ("weighted_sum", "dissimilarity")  # what a network's method `finish` takes
_FINISHED = ("anomaly_map", "slice_scores", "ease")  # and what it gives
_UNNAMED = ""  # the map of a network that gives one tensor


class SlicedInferer(Inferer):  # type: ignore[misc]
    """Runs a network over the chosen slices of a volume and re-assembles what it says of them.

    Skipped slices are filled with 0. With several planes each voxel gets the mean over the planes that saw it.

    A network may have a method `finish`, as `MapScorer` does, for what takes all slices of a plane at once: it is
    called with what the network gave for them as "weighted_sum" (n, 1, H, W) and "dissimilarity" (n,), with where they
    are above 0 (n, 1, H, W) and with their `Places`, and gives the "anomaly_map", "slice_scores" and other numbers per
    slice that count.

    Args:
        slicer: the policy.
        batch_size: slices that are in the network at a time. On a CPU of several cores, and without gradients, two
            halves of them go through it side by side, so it has to be safe to call from two threads, as modules in
            evaluation mode are.

    Example:
        >>> inferer = SlicedInferer(Slicer(["axial", "coronal", "sagittal"], image_size=[32, 32], fit="pad"))
        >>> volume = torch.rand(1, 1, 20, 24, 16)
        >>> torch.allclose(inferer(volume, lambda slices, places: slices), volume)
        True
    """

    def __init__(self, slicer: Slicer, batch_size: int = 4) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size has to be 1 or more; got {batch_size}.")
        self.slicer = slicer
        self.batch_size = batch_size

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor | dict[str, Tensor]],
        *args: Any,
        **kwargs: Any,
    ) -> Tensor | dict[str, Tensor]:
        """Look at a volume.

        Args:
            inputs: (1, C, X, Y, Z), oriented to PLS, in [0, 1].
            network: takes slices (n, C, H, W) and their `Places`; gives maps (n, c, H, W), or a dictionary of maps and
                of numbers per slice (n,).
            args: further arguments of the network.
            kwargs: further arguments of the network.

        Returns:
            What the network gives, for the volume: maps (1, c, X, Y, Z); numbers per slice under
            `<name>_<plane>`, (1, slices), NaN where a slice was skipped.

        Raises:
            ValueError: more than one volume, a volume of other dimensions, or no slice to look at.
        """
        if inputs.ndim != 5 or inputs.shape[0] != 1:
            raise ValueError(
                f"Expected one volume (1, C, X, Y, Z); got {tuple(inputs.shape)}. Set the loader's batch_size to 1, "
                "and use EnsureVolumed for 2D images."
            )
        volume = inputs[0].as_subclass(Tensor)
        axes = self.slicer.axes_of(volume)
        assembly = _Assembly(self.slicer, volume)
        finish = getattr(network, "finish", None)
        seen = torch.zeros(1, *volume.shape[1:], device=volume.device) if len(axes) > 1 else None
        for axis in axes:
            indices = self.slicer.chosen(volume, axis)
            if not len(indices):  # of which a split would be one empty batch
                continue
            heights = self.slicer.places(indices, axis).heights
            unfinished: dict[int, list[Tensor]] = {}  # by the first slice of each batch

            def look(
                some: Tensor,
                axis: str = axis,
                indices: Tensor = indices,
                heights: Tensor = heights,
                unfinished: dict[int, list[Tensor]] = unfinished,
            ) -> None:
                places = Places([axis] * len(some), heights[some])
                slices = self.slicer.slices(volume, axis, indices[some])
                output = network(slices, places, *args, **kwargs)
                if finish is not None and isinstance(output, dict):
                    unfinished[int(some[0])] = [*map(output.pop, _UNFINISHED), foreground_of(slices)]
                    output = {name: value for name, value in output.items() if name not in _FINISHED}
                assembly.add(output, axis, indices[some])

            sides = _sides(volume.device)
            batches = torch.split(torch.arange(len(indices)), math.ceil(self.batch_size / sides))
            _side_by_side(look, batches, min(sides, len(batches)))
            if finish is not None:
                together = [
                    torch.cat(parts) for parts in zip(*(unfinished[k] for k in sorted(unfinished)), strict=True)
                ]
                assembly.add(finish(*together, Places([axis] * len(indices), heights)), axis, indices)
            if seen is not None:
                stack_of(seen, axis)[indices] += 1
        maps = assembly.maps
        if not maps:
            raise ValueError(
                f"No slice to look at: along {', '.join(axes)} none of the volume {tuple(volume.shape[1:])} has "
                f"{self.slicer.min_foreground:.0%} of its pixels above 0 within the span. Lower min_foreground, or "
                "look at the intensity normalisation."
            )
        if seen is not None:
            for value in maps.values():
                value /= seen.clamp_min(1)
        # where the volume lies goes along with its maps
        batched: dict[str, Tensor] = {name: convert_to_dst_type(value[None], inputs)[0] for name, value in maps.items()}
        return batched[_UNNAMED] if maps.keys() == {_UNNAMED} else {**batched, **assembly.numbers}


class _Assembly:
    """What a network says of the slices of a volume (C, X, Y, Z), put together; from several threads too."""

    def __init__(self, slicer: Slicer, volume: Tensor) -> None:
        self.slicer = slicer
        self.volume = volume
        self.maps: dict[str, Tensor] = {}
        self.numbers: dict[str, Tensor] = {}
        self.lock = Lock()

    def add(self, output: Tensor | dict[str, Tensor], axis: str, indices: Tensor) -> None:
        """Maps and numbers of some slices."""
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

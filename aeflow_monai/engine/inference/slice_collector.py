"""Collector of a network's output for the slices of a volume, batch by batch."""

from __future__ import annotations

import math
from threading import Lock

import torch
from torch import Tensor

from aeflow_monai.data.slicer import Slicer

__all__ = ["UNNAMED", "Output", "SliceCollector"]

UNNAMED = ""  # name of the map of a network that returns a single tensor
Output = Tensor | dict[str, Tensor]


class SliceCollector:
    """Collect the network's output for the chosen slices of a volume (C, X, Y, Z); thread-safe."""

    def __init__(self, slicer: Slicer, volume: Tensor) -> None:
        self.slicer = slicer
        self.volume = volume
        self.indices: dict[str, Tensor] = {}  # of the chosen slices along each plane's axis
        self.stacks: dict[str, dict[str, Tensor]] = {}
        self.numbers: dict[str, Tensor] = {}
        self.lock = Lock()
        self.n_done = 0

    def add(self, output: Output, axis: str, some: Tensor) -> None:
        """Add maps and numbers of some of the chosen slices of a plane."""
        with self.lock:
            for name, value in output.items() if isinstance(output, dict) else [(UNNAMED, output)]:
                if value.ndim == 1:
                    self._add_numbers(name, value, axis, self.indices[axis][some])
                    continue
                stacks, count = self.stacks.setdefault(name, {}), len(self.indices[axis])
                if len(some) == count:
                    stacks[axis] = value
                    continue
                if axis not in stacks:
                    stacks[axis] = value.new_empty(count, *value.shape[1:])
                stacks[axis][some.to(value.device)] = value

    def count(self, n: int) -> int:
        """Add n to the number of processed slices of a plane, and return it."""
        with self.lock:
            self.n_done += n
            return self.n_done

    def _add_numbers(self, name: str, values: Tensor, axis: str, indices: Tensor) -> None:
        if not torch.isfinite(values).all():  # NaN marks skipped slices
            raise ValueError(
                f"The network's {name} of {axis} slices are not finite: the image holds NaN, infinite or huge values; "
                "replace them first."
            )
        if f"{name}_{axis}" not in self.numbers:
            # for every plane, even if all of its slices are skipped
            for each in self.slicer.axes_of(self.volume):
                count = self.slicer.count(self.volume, each)
                self.numbers[f"{name}_{each}"] = values.new_full((1, count), math.nan)
        self.numbers[f"{name}_{axis}"][0, indices] = values

"""A trivial baseline, used by the other benchmarks: the distance from the mean of the training volumes.

The anomaly map is |intensity - mean volume| in the network's own grid: the bundle's preprocessing and slicing policy,
volumes padded symmetrically about their centre, also in depth. Brains are not registered to each other. Scores of
slices and cases, and thresholds, are computed from the map as for AE-Flow, with the first of its top fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from map_inferer import Answer, MapMethod, axial_stack
from torch import Tensor

from aeflow_monai import Score, Slicer
from aeflow_monai.score.top_fractions import top_mean


def centred(stack: Tensor, shape: Iterable[int]) -> Tensor:
    """Crop the stack or pad it with 0 to a shape, about its centre."""
    result = stack
    for dimension, size in enumerate(shape):
        own = result.shape[dimension]
        if own > size:
            result = result.narrow(dimension, (own - size) // 2, size)
        elif own < size:
            padded = result.new_zeros(*result.shape[:dimension], size, *result.shape[dimension + 1 :])
            padded.narrow(dimension, (size - own) // 2, own).copy_(result)
            result = padded
    return result


def mean_volume(slicer: Slicer, volumes: Iterable[Tensor]) -> Tensor:
    """Return the mean of preprocessed volumes (1, X, Y, Z) in the network's grid, (Z, H, W), sized as the largest."""
    total, count = torch.zeros(0, 0, 0), 0
    for volume in volumes:
        stack = axial_stack(slicer, volume)[0][:, 0]
        shape = [max(sizes) for sizes in zip(total.shape, stack.shape, strict=True)]
        # a grid that grows by an odd number is off-centre by half a voxel, like a padded slice
        total = centred(total, shape) + centred(stack, shape)
        count += 1
    return total / count


class TrivialMap(MapMethod):
    """A map that needs no network.

    Args:
        map_of: returns the map (Z, H, W) of a volume in the network's grid.
        score: its first top fraction gives the score of a slice.
    """

    def __init__(self, map_of: Callable[[Tensor], Tensor], score: Score) -> None:
        super().__init__(score)
        self.map_of = map_of

    def infer(self, stack: Tensor, chosen: Tensor) -> Answer:
        """Score the chosen slices of a volume."""
        maps = self.map_of(stack[:, 0])[chosen, None]
        return Answer(top_mean(maps.flatten(1), self.score.top_fractions[0]), maps)


class DifferenceMap(TrivialMap):
    """The baseline: |intensity - mean volume|.

    Args:
        mean: result of `mean_volume`.
        score: see `TrivialMap`.
    """

    def __init__(self, mean: Tensor, score: Score) -> None:
        super().__init__(lambda stack: (stack - centred(mean, stack.shape)).abs(), score)

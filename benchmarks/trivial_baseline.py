"""What any method has to beat: the distance from the mean of the training volumes. Used by the other benchmarks.

The anomaly map is |intensity - mean volume| in the network's own grid: the bundle's preprocessing and slicing policy,
volumes padded symmetrically about their centre, in depth too. Brains are not registered to each other. Scores of slices
and cases, and thresholds, come from the map by the same reductions as AE-Flow's; of its top fractions by the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from map_inferer import Answer, MapMethod, axial_stack
from torch import Tensor

from aeflow_monai import Score, Slicer
from aeflow_monai.score.top_fractions import top_mean


def centred(stack: Tensor, shape: Iterable[int]) -> Tensor:
    """The stack cropped or padded with 0 to a shape, centre on centre."""
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
    """Mean of preprocessed volumes (1, X, Y, Z) in the network's grid, (Z, H, W), as large as the largest."""
    total, count = torch.zeros(0, 0, 0), 0
    for volume in volumes:
        stack = axial_stack(slicer, volume)[0][:, 0]
        shape = [max(sizes) for sizes in zip(total.shape, stack.shape, strict=True)]
        # a grid that grows by an odd number is off the centre by half a voxel, as a padded slice is
        total = centred(total, shape) + centred(stack, shape)
        count += 1
    return total / count


class TrivialMap(MapMethod):
    """A map that no network is needed for.

    Args:
        map_of: gives the map (Z, H, W) of a volume in the network's grid.
        score: whose first top fraction makes the score of a slice.
    """

    def __init__(self, map_of: Callable[[Tensor], Tensor], score: Score) -> None:
        super().__init__(score)
        self.map_of = map_of

    def infer(self, stack: Tensor, chosen: Tensor) -> Answer:
        """Look at the chosen slices of a volume."""
        maps = self.map_of(stack[:, 0])[chosen, None]
        return Answer(top_mean(maps.flatten(1), self.score.top_fractions[0]), maps)


class DifferenceMap(TrivialMap):
    """The baseline itself: |intensity - mean volume|.

    Args:
        mean: of `mean_volume`.
        score: see `TrivialMap`.
    """

    def __init__(self, mean: Tensor, score: Score) -> None:
        super().__init__(lambda stack: (stack - centred(mean, stack.shape)).abs(), score)

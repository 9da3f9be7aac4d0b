"""What any method has to beat: the distance from the mean of the training volumes. Used by the other benchmarks.

The anomaly map is |intensity - mean volume| in the network's own grid: the bundle's preprocessing and slicing policy,
volumes padded symmetrically about their centre, in depth too. Brains are not registered to each other. Scores of slices
and cases, and thresholds, come from the map by the same reductions as AE-Flow's; of its slice shares by the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.score.scoring import AnomalyScorer
from aeflow_monai.score.scoring import top_mean
from aeflow_monai.score.thresholds import upper_threshold


def network_grid(slicer: Slicer, volume: Tensor) -> Tensor:
    """All axial slices of a volume (1, X, Y, Z) as the network takes them, (Z, H, W)."""
    if slicer.axes_of(volume) != ("axial",):
        raise ValueError(f"The baseline is made for axial slices only; got axes {slicer.axes_of(volume)}.")
    return slicer.slices(volume.as_subclass(Tensor), "axial", torch.arange(volume.shape[-1]))[:, 0]


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
        stack = network_grid(slicer, volume)
        shape = [max(sizes) for sizes in zip(total.shape, stack.shape, strict=True)]
        # a grid that grows by an odd number is off the centre by half a voxel, as a padded slice is
        total = centred(total, shape) + centred(stack, shape)
        count += 1
    return total / count


class MapInferer(Inferer):
    """Stands where the bundle has its SlicedInferer: maps and slice scores of a volume, without a network.

    Args:
        map_of: gives the map (Z, H, W) of a volume in the network's grid.
        slicer: the bundle's slicing policy.
        scorer: defines how a map becomes a slice score.
    """

    def __init__(self, map_of: Callable[[Tensor], Tensor], slicer: Slicer, scorer: AnomalyScorer) -> None:
        super().__init__()
        self.map_of = map_of
        self.slicer = slicer
        self.scorer = scorer

    def planes(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (n,) and maps (n, 1, H, W) of the slices that the network would look at."""
        chosen = self.slicer.chosen(volume.as_subclass(Tensor), "axial")
        return chosen, self.map_of(network_grid(self.slicer, volume))[chosen, None]

    def slice_scores(self, planes: Tensor) -> Tensor:
        """Mean of the first slice share of the highest map values: (n, 1, H, W) to (n,)."""
        return top_mean(planes.flatten(1), self.scorer.slice_shares[0])

    def __call__(self, inputs: Tensor, network: Any = None, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The map of one volume (1, 1, X, Y, Z), 0 where slices are skipped, and the scores of its slices."""
        volume = inputs[0]
        chosen, planes = self.planes(volume)
        anomaly_map = torch.zeros(1, *volume.shape[1:])
        self.slicer.paste(planes, anomaly_map, "axial", chosen)
        scores = torch.full((1, volume.shape[-1]), math.nan)
        scores[0, chosen] = self.slice_scores(planes)
        return {"anomaly_map": convert_to_dst_type(anomaly_map[None], inputs)[0], "slice_scores_axial": scores}

    def thresholds(self, normals: Iterable[Tensor], specificity: float) -> dict[str, float]:
        """Thresholds from held-out normal volumes (1, X, Y, Z), as `calibrate` fits them."""
        peaks: list[float] = []
        slices: list[float] = []
        cases: list[float] = []
        for volume in normals:
            _, planes = self.planes(volume)
            scores = self.slice_scores(planes)
            peaks += planes.flatten(1).amax(dim=1).tolist()
            slices += scores.tolist()
            cases.append(float(self.scorer.case_score({"axial": scores})))
        found: Mapping[str, list[float]] = {"map_threshold": peaks, "slice_threshold": slices, "case_threshold": cases}
        return {name: upper_threshold(values, specificity) for name, values in found.items()}


class DifferenceInferer(MapInferer):
    """The baseline itself: |intensity - mean volume|.

    Args:
        mean: of `mean_volume`.
        slicer: the bundle's slicing policy.
        scorer: defines how a map becomes a slice score.
    """

    def __init__(self, mean: Tensor, slicer: Slicer, scorer: AnomalyScorer) -> None:
        super().__init__(lambda stack: (stack - centred(mean, stack.shape)).abs(), slicer, scorer)

"""Small pictures of a case for the report, from maps that are stored as slices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn import functional as F

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.inference.stacked_maps import StackedMap
from aeflow_monai.geometry import PLANES, ras_affine, voxel_spacing
from aeflow_monai.output.case_score import most_anomalous_slice
from aeflow_monai.output.report.picture_block import MAX_SLICES, PictureBlock
from aeflow_monai.output.slice_place import SlicePlace, slice_places

__all__ = ["ReportPicturesd"]

_SIDE = {True: 320, False: 128}  # pixels of a 2D image, and of a slice of a volume
_BATCH = 8  # slices that are downsampled at a time


class ReportPicturesd(MapTransform):  # type: ignore[misc]
    """Add "report_pictures", a `PictureBlock` of at most 64 slices of a case, from the maps of `StackMapsd`.

    They are every n-th slice along the plane of the most anomalous slice, including this slice, at the network's input
    size or smaller: maps are downsampled by maximum, images by mean. Maps of several planes are averaged. Nothing is
    added for maps that are not a `StackedMap`.

    Args:
        slicer: the slicing policy.
        image_key: key of the preprocessed image (C, X, Y, Z), whose first channel is shown.
    """

    def __init__(self, slicer: Slicer, image_key: str = "image") -> None:
        super().__init__(image_key)
        self.slicer = slicer

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the pictures of one case."""
        d = dict(data)
        if isinstance(d.get("anomaly_map"), StackedMap):
            d["report_pictures"] = self._block(d, d["anomaly_map"])
        return d

    def _block(self, data: Mapping[Hashable, Any], anomaly_map: StackedMap) -> PictureBlock:
        image = data[self.keys[0]]
        plane, seen = next(iter(anomaly_map.indices.items()))
        plane, peak = most_anomalous_slice(data["slice_scores"]) or (plane, int(seen[0]))
        seen = anomaly_map.indices[plane].cpu()
        chosen = _every_nth(int(seen[0]), int(seen[-1]), peak)
        top = 2 * max(float(data["map_threshold"]), 3.0)
        volume = image.as_subclass(Tensor)
        pictures = self._reduced(volume[:1], plane, chosen)
        layers = {
            "image": pictures,
            "anomaly_map": _of_stack(anomaly_map.averaged(plane, chosen), plane, chosen, 1 / top, pictures, True),
        }
        if isinstance(reconstruction := data.get("reconstruction"), StackedMap):
            mean = reconstruction.averaged(plane, chosen)
            layers["reconstruction"] = _of_stack(mean, plane, chosen, 1.0, pictures, False)
        if isinstance(lesion := data.get("lesion"), Tensor):
            # 255 where at least a quarter of a pixel is lesion
            layers["lesion"] = (self._reduced(lesion.as_subclass(Tensor)[:1], plane, chosen, True) > 64).byte() * 255
        scores = data["slice_scores"][plane]
        places = slice_places(image, plane)
        positions = _positions(image, places)
        step = int(chosen[1] - chosen[0]) if len(chosen) > 1 else 1
        return PictureBlock(
            plane,
            tuple(int(index) + 1 for index in chosen),
            tuple(positions[int(index)] for index in chosen) if positions else (),
            int((chosen == peak).nonzero()[0]),
            self._extent(image, plane, step),
            _window(pictures),
            top,
            {name: layer.numpy() for name, layer in layers.items()},
            {
                "scores": [None if np.isnan(s) else round(s, 3) for s in scores.tolist()],
                "positions_mm": positions,
                "slices_from_0": [place.slice_from_0 for place in places],
                **({"axis": places[0].axis, "n_slices": places[0].n_slices} if places else {}),
            },
        )

    def _reduced(self, volume: Tensor, plane: str, chosen: Tensor, is_mask: bool = False) -> Tensor:
        """Return slices of a volume (1, X, Y, Z) in [0, 1], or of a mask, as grey levels (n, rows, columns)."""
        parts = []
        for some in torch.split(chosen, _BATCH):
            thin = volume.index_select(1 + PLANES[plane].axis, some.to(volume.device))
            thin = (thin != 0).float() if is_mask else thin.float()
            slices = self.slicer.slices(thin, plane, torch.arange(len(some)))
            parts.append(_grey(slices, volume.shape[-1] == 1, is_mask))
        return torch.cat(parts)

    def _extent(self, image: Tensor, plane: str, step: int) -> tuple[float, float, float]:
        """Return height and width of a slice at the network's input size, and the distance of `step` slices, in mm."""
        axis = PLANES[plane].axis
        down, right = {0: (2, 1), 1: (2, 0), 2: (0, 1)}[axis]
        spacing, shape = voxel_spacing(image), image.shape[1:]
        padded = self.slicer.slices(image.as_subclass(Tensor)[:1], plane, torch.zeros(1, dtype=torch.long)).shape[-2:]
        rows, columns = (shape[down], shape[right]) if self.slicer.fit == "resize" else padded
        return rows * spacing[down], columns * spacing[right], step * spacing[axis]


def _every_nth(first: int, last: int, peak: int) -> Tensor:
    """Return slice numbers from first to last, at most 64 at equal distances, including the peak."""
    step = max(1, -(-(last - first + 1) // (MAX_SLICES - 1)))
    return torch.arange(first + (peak - first) % step, last + 1, step)


def _of_stack(stacked: StackedMap, plane: str, chosen: Tensor, scale: float, like: Tensor, by_maximum: bool) -> Tensor:
    """Return slices of a map as grey levels, black where no slice was processed."""
    stack, is_picture = stacked.stacks[plane], stacked.shape[-1] == 1
    places = {int(index): place for place, index in enumerate(stacked.indices[plane])}
    numbers, of_stack = zip(
        *((n, places[index]) for n, index in enumerate(chosen.tolist()) if index in places), strict=True
    )
    levels = torch.zeros_like(like)
    for number, place in zip(*(torch.split(torch.tensor(some), _BATCH) for some in (numbers, of_stack)), strict=True):
        levels[number] = _grey(stack[place.to(stack.device), :1].float() * scale, is_picture, by_maximum)
    return levels


def _grey(slices: Tensor, is_picture: bool, by_maximum: bool) -> Tensor:
    """Return slices (n, 1, H, W) in [0, 1], downsampled to display size, as grey levels (n, rows, columns)."""
    rows, columns = slices.shape[-2:]
    shrink = min(1.0, _SIDE[is_picture] / max(rows, columns))
    if shrink < 1:
        pool = F.adaptive_max_pool2d if by_maximum else F.adaptive_avg_pool2d
        slices = pool(slices, (max(1, round(rows * shrink)), max(1, round(columns * shrink))))
    return (slices[:, 0].nan_to_num(0.0) * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def _window(pictures: Tensor) -> tuple[int, int]:
    """Return the grey levels that are shown black and white, as in an overlay."""
    counts = torch.bincount(pictures.flatten().to(torch.int64), minlength=256).cumsum(0).double()
    low, high = (int((counts >= share * counts[-1]).nonzero()[0]) for share in (0.005, 0.995))
    return (low, high) if high > low else (0, 255)


def _positions(image: Tensor, places: Sequence[SlicePlace]) -> list[float]:
    """Return the positions of all slices in mm; none for a 2D image, whose position is unknown."""
    if isinstance(image, MetaTensor) and np.array_equal(ras_affine(image.affine, image.meta), np.eye(4)):
        return []  # the identity stands for a missing affine
    return [round(place.position_mm, 1) + 0.0 for place in places if place.position_mm is not None]

"""Maps of a volume, stored as the network's slices, which are smaller than the volume if it was shrunk."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from torch import Tensor

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.geometry import PLANES
from aeflow_monai.output.case_score import most_anomalous_slice
from aeflow_monai.output.deferred import DeferredMap
from aeflow_monai.output.slice_place import voxel_of_file

__all__ = ["StackMapsd", "StackedMap", "mean_over_planes"]

_BATCH = 8  # slices that are resized to the volume's grid at a time


class StackedMap(DeferredMap):
    """A map of a volume, stored as slices.

    Skipped slices are 0. With several planes each voxel is the mean over the planes that cover it.

    Args:
        slicer: the slicing policy.
        image: the preprocessed volume that the slices are of, (C, X, Y, Z).
        stacks: from each plane to the slices of the map as the network returned them, (n, c, H, W).
        indices: from each plane to the numbers of its processed slices, (n,).

    Example:
        >>> slicer = Slicer(image_size=[4, 4])
        >>> stack, index = torch.ones(1, 1, 4, 4), torch.tensor([2])
        >>> stacked = StackedMap(slicer, torch.zeros(1, 8, 8, 3), {"axial": stack}, {"axial": index})
        >>> stacked.volume().sum(dim=(0, 1, 2)).tolist()
        [0.0, 0.0, 64.0]
    """

    def __init__(
        self, slicer: Slicer, image: Tensor, stacks: Mapping[str, Tensor], indices: Mapping[str, Tensor]
    ) -> None:
        self.slicer = slicer
        self._image = image
        self.stacks = dict(stacks)
        self.indices = dict(indices)

    @property
    def image(self) -> Tensor:
        """Return the preprocessed volume."""
        return self._image

    @property
    def dtype(self) -> torch.dtype:
        """Return the data type of the stacks, which all come from one network."""
        return next(iter(self.stacks.values())).dtype

    @property
    def axis_of_planes(self) -> int | None:
        """Return the axis of the volume across the slices if there is a single plane; None for a 2D image."""
        if len(self.indices) > 1 or self.shape[-1] == 1:
            return None
        (plane,) = self.stacks
        return PLANES[plane].axis

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the number of channels and the spatial shape of the volume."""
        rows, columns, depth = self.image.shape[1:]
        return (next(iter(self.stacks.values())).shape[1], rows, columns, depth)

    def volume(self) -> Any:
        """Assemble the volume from the slices."""
        return convert_to_dst_type(self.pasted(), self.image)[0]

    def pasted(self) -> Tensor:
        """Assemble the volume (c, X, Y, Z) without the image's affine."""
        if self.shape[-1] == 1:  # a 2D image, which may be large, is not copied
            (stack,) = self.stacks.values()
            return self.slicer.own_size(stack, self.shape[1:3])[0, ..., None].add_(0)  # -0 becomes 0, as in a sum
        volume = self._zeros(*self.shape)
        for plane, stack in self.stacks.items():
            indices = self.indices[plane]
            for start in range(0, len(stack), _BATCH):
                some = slice(start, start + _BATCH)
                self.slicer.paste(stack[some], volume, plane, indices[some])
        if len(self.indices) > 1:
            self._divide_by_seen(volume)
        return volume

    def slice(self, axis: int, index: int) -> Tensor:
        """Return a slice of the volume; if it is across a single plane, the others are not assembled."""
        if axis != self.axis_of_planes:
            return self.pasted().select(1 + axis, index)
        channels = [self.planes(channel, index, index + 1) for channel in range(self.shape[0])]
        return torch.cat(channels).select(1 + axis, 0)

    def planes(self, channel: int, start: int, stop: int) -> Tensor:
        """Return slices of a channel of a single plane without assembling the others; see `DeferredMap`."""
        ((plane, stack),) = self.stacks.items()
        indices = self.indices[plane]
        shape = [1, *self.shape[1:]]
        shape[1 + PLANES[plane].axis] = stop - start
        thin = self._zeros(*shape)
        some = ((indices >= start) & (indices < stop)).nonzero().flatten()
        if len(some):
            maps = stack[some.to(stack.device), channel : channel + 1]
            self.slicer.paste(maps, thin, plane, indices[some] - start)
        return thin

    def averaged(self, plane: str, some: Tensor) -> StackedMap:
        """Return a map of some of the processed slices of a plane, (n,), each as the mean over all planes."""
        if len(self.indices) == 1:
            return self
        of_slices = self.indices[plane]
        chosen = of_slices[torch.isin(of_slices, some.to(of_slices))]
        return StackedMap(
            self.slicer,
            self.image,
            {plane: _slices_of(self.slicer, self.pasted(), plane, chosen)},
            {plane: chosen},
        )

    def peak(self, plane: str, index: int) -> tuple[int, int, int]:
        """Return the voxel of the volume where a slice of a plane is highest.

        Args:
            plane: one of the stacks.
            index: number of a processed slice along the plane.
        """
        axis = PLANES[plane].axis
        values = self.slice(axis, index)[0]
        voxel = [int(number) for number in torch.unravel_index(values.argmax(), values.shape)]
        voxel.insert(axis, index)
        return voxel[0], voxel[1], voxel[2]

    def _zeros(self, channels: int, rows: int, columns: int, depth: int) -> Tensor:
        # contiguous slice by slice, the order of pasting axial slices and of writing NIfTI
        of_dtype = next(iter(self.stacks.values()))
        return of_dtype.new_zeros(depth, channels, rows, columns).permute(1, 2, 3, 0)

    def _divide_by_seen(self, volume: Tensor) -> None:
        """Divide the sum over planes by the number of planes that cover each voxel."""
        seen = [torch.zeros(size, device=volume.device) for size in volume.shape[1:]]
        for plane, indices in self.indices.items():
            seen[PLANES[plane].axis][indices.to(volume.device)] += 1
        in_slice = seen[0][:, None] + seen[1][None]
        for index, of_slice in enumerate(seen[2]):
            volume[..., index] /= (in_slice + of_slice).clamp_min(1)


def mean_over_planes(
    slicer: Slicer, shape: Sequence[int], maps: Mapping[str, Tensor], indices: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Compute the mean over all planes that cover a voxel, at the slices of each plane.

    Args:
        slicer: the slicing policy.
        shape: X, Y, Z of the volume.
        maps: from each plane to the map of its slices, (n, 1, H, W).
        indices: from each plane to the numbers of these slices, (n,).

    Returns:
        From each plane to the mean at the same slices, (n, 1, H, W), and its highest value in each, (n,), at the
        volume's original size, which is higher where slices were shrunk.

    Example:
        >>> slicer = Slicer(["axial", "coronal"], image_size=[4, 4])
        >>> maps = {"axial": torch.ones(4, 1, 4, 4), "coronal": torch.zeros(4, 1, 4, 4)}
        >>> means = mean_over_planes(slicer, (4, 4, 4), maps, dict.fromkeys(maps, torch.arange(4)))
        >>> {plane: mean.unique().tolist() for plane, (mean, _) in means.items()}
        {'axial': [0.5], 'coronal': [0.5]}
    """
    volume = StackedMap(slicer, torch.empty((1, *shape), device="meta"), maps, indices).pasted()
    found = {}
    for plane, numbers in indices.items():
        others = [d for d in range(4) if d != 1 + PLANES[plane].axis]
        highest = volume.amax(dim=others)[numbers.to(volume.device)]
        found[plane] = (_slices_of(slicer, volume, plane, numbers), highest)
    return found


def _slices_of(slicer: Slicer, volume: Tensor, plane: str, indices: Tensor) -> Tensor:
    """Return slices at the network's input size, resized a few at a time."""
    return torch.cat([slicer.slices(volume, plane, some) for some in torch.split(indices, _BATCH)])


class StackMapsd(MapTransform):  # type: ignore[misc]
    """Convert the output of `SlicedInferer.stacks` for a case to a `StackedMap` for each name.

    It adds "peak", a `Peak`: where the anomaly map of the most anomalous slice is highest.

    Args:
        slicer: the slicing policy.
        image_key: key of the preprocessed image (C, X, Y, Z).
    """

    def __init__(self, slicer: Slicer, image_key: str = "image") -> None:
        super().__init__(image_key)
        self.slicer = slicer

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the maps of one case."""
        d = dict(data)
        stacks, indices = d.pop("stacks"), d.pop("indices")
        image = d[self.keys[0]]
        maps = {name: StackedMap(self.slicer, image, of_planes, indices) for name, of_planes in stacks.items()}
        place = most_anomalous_slice(d.get("slice_scores", {}))  # none from a user's own network
        if place is not None and "anomaly_map" in maps:
            d["peak"] = voxel_of_file(image, maps["anomaly_map"].peak(*place))
        return {**d, **maps}

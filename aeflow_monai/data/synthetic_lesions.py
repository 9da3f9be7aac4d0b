"""Synthetic lesions in normal slices, which stand in for abnormal images in the training."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional as F

from aeflow_monai.data.slice_copies import SliceCopies

__all__ = ["LesionSlices", "RandLesiond"]

_KINDS = ("scaled", "flat", "textured", "moved")
_LEAST = 0.01  # a soft edge ends where it changes less than this fraction of a pixel
_VISIBLE = 0.02  # smallest visible change, for an intensity range of 1
_UNDECIDED = 0.1  # largest mask value where the change is invisible: neither normal nor abnormal for `MixtureLoss`


class RandLesiond(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Add a few lesions to the foreground of a slice, with their mask.

    A lesion is a soft, irregular ellipse in which the tissue is scaled, mixed with a constant, textured, or partly
    replaced by tissue from elsewhere in the slice; all lesions of a slice are of one kind. They imitate no disease:
    they show the training what is not normal, not what a disease looks like. Works on the CPU.

    Args:
        keys: keys of slices (C, H, W) in [0, 1], of one size; all get lesions in the same places, each channel with its
            own direction of change and within its own foreground.
        lesion_key: key of the added mask, (1, H, W) in [0, 1]: the fraction of each pixel that is lesion, at most 0.1
            where the change is too faint to be visible, as in dark tissue.
        most: largest number of lesions in a slice, 1 or more.
        radius: smallest and largest radius, as fractions of the slice's longer side; small ones are more frequent.
        change: smallest and largest strength, in (0, 1]: relative to the tissue's intensity, or the share replaced.
        prob: probability that a slice gets lesions.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> plant = RandLesiond("image").set_random_state(seed=0)
        >>> planted = plant({"image": torch.full((1, 64, 64), 0.5)})
        >>> tuple(planted["lesion"].shape), bool((planted["image"] != 0.5).any())
        ((1, 64, 64), True)

    Source: pasted and interpolated patches follow CutPaste (Li et al., CVPR 2021) and Foreign Patch Interpolation (Tan
    et al., MELBA 2022); shapes and kinds are this project's.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lesion_key: str = "lesion",
        most: int = 3,
        radius: tuple[float, float] = (0.02, 0.15),
        change: tuple[float, float] = (0.15, 0.7),
        prob: float = 1.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if most < 1:
            raise ValueError(f"most is a number of lesions and has to be 1 or more; got {most}.")
        for name, (low, high) in (("radius", radius), ("change", change)):
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} has to be a smallest and a largest fraction, in (0, 1]; got {(low, high)}.")
        self.lesion_key = lesion_key
        self.most = most
        self.radius = radius
        self.change = change

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the lesions; a slice without foreground stays unchanged.

        Raises:
            ValueError: not a slice (C, H, W), or keys of different sizes.
        """
        d = dict(data)
        self.randomize(None)
        slices = [torch.as_tensor(d[key]) for key in self.key_iterator(d)]
        shapes = [tuple(plane.shape) for plane in slices]
        if any(len(shape) != 3 for shape in shapes) or len({shape[1:] for shape in shapes}) > 1:
            raise ValueError(f"Expected slices (C, H, W) of one size; got {shapes}. Cut volumes into slices first.")
        foreground = torch.stack([(plane > 0).any(dim=0) for plane in slices]).any(dim=0)
        mask = torch.zeros(1, *foreground.shape)
        if self._do_transform and foreground.any():
            places = foreground.nonzero()
            for _ in range(self.R.randint(1, self.most + 1)):
                self._add_shape(mask[0], places)
            mask *= foreground
            kind = _KINDS[self.R.randint(len(_KINDS))]
            change = torch.zeros_like(mask[0])
            for key, plane in zip(self.key_iterator(d), slices, strict=True):
                changed = torch.stack([self._changed(channel, kind) for channel in plane]).clamp(0, 1)
                changed = torch.where(plane > 0, changed, plane)
                planted = torch.where(mask > 0, plane + mask * (changed - plane), plane)
                d[key] = planted
                change = change.maximum((planted - plane).abs().amax(dim=0))
            mask = torch.where(change >= _VISIBLE, mask, mask.clamp_max(_UNDECIDED)) * (change > 0)
        d[self.lesion_key] = mask
        return d

    def _add_shape(self, mask: Tensor, places: Tensor) -> None:
        """Draw one soft, irregular ellipse around one of the places (n, 2) into the mask (H, W)."""
        height, width = mask.shape
        row, column = places[self.R.randint(len(places))].tolist()
        smallest, largest = (fraction * max(height, width) for fraction in self.radius)
        radius = smallest + (largest - smallest) * self.R.rand() ** 2
        aspect, angle = math.sqrt(1 + 1.5 * self.R.rand()), math.pi * self.R.rand()
        edge = 0.05 + 0.5 * self.R.rand() ** 2
        reach = math.ceil(3 * radius * aspect)
        top, left = max(0, row - reach), max(0, column - reach)
        window = mask[top : row + reach + 1, left : column + reach + 1]
        y = torch.arange(top, top + window.shape[0]).view(-1, 1) - row
        x = torch.arange(left, left + window.shape[1]).view(1, -1) - column
        along = (y * math.cos(angle) + x * math.sin(angle)) / (radius * aspect)
        across = (x * math.cos(angle) - y * math.sin(angle)) / (radius / aspect)
        uneven = 0.35 * self._noise(window.shape, cell=radius)
        lesion = torch.sigmoid(2 * (1 + uneven - torch.hypot(along, across)) / edge)
        window.copy_(torch.maximum(window, lesion * (lesion >= _LEAST)))

    def _changed(self, channel: Tensor, kind: str) -> Tensor:
        """Return a channel (H, W) as if it were lesion everywhere."""
        low, high = self.change
        strength = low + (high - low) * float(self.R.rand())
        sign = float(self.R.choice([-1.0, 1.0]))
        if kind == "scaled":
            return channel * (1 + sign * strength)
        if kind == "flat":
            return channel + strength * (float(self.R.rand()) - channel)
        if kind == "textured":
            texture = self._noise(channel.shape, cell=max(channel.shape) / 24)
            return channel + 0.6 * sign * strength * (0.6 + 0.4 * texture.tanh())
        shifts = [int(self.R.randint(-size // 4, size // 4 + 1)) for size in channel.shape]
        moved = channel.roll(shifts, (0, 1))
        if self.R.rand() < 0.5:
            moved = moved.flip(1)
        return torch.where(moved > 0, channel + (0.6 + strength / 2) * (moved - channel), channel)

    def _noise(self, shape: Sequence[int], cell: float) -> Tensor:
        """Return a smooth random field (H, W) with bumps of about `cell` pixels and a standard deviation of about 1."""
        cell = max(cell, 2.0)
        grid = [math.ceil(size / cell) + 3 for size in shape]
        coarse = torch.from_numpy(self.R.standard_normal((1, 1, *grid))).float()
        return F.interpolate(coarse, size=tuple(shape), mode="bicubic", align_corners=False)[0, 0]


class LesionSlices(SliceCopies):
    """Copies of normal slices with synthetic lesions, each with the lesion mask under "lesion".

    Args:
        slices: items hold "image" (C, H, W) in [0, 1].
        transform: adds lesions to "image" and their mask as "lesion", (1, H, W).
        copies: copies of each slice, 0 or more.
        seed: seed of the lesions.
        folder: where to store them, see `SliceCopies`.

    Raises:
        ValueError: copies is below 0.
    """

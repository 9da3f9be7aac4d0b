"""Normal slices as another acquisition might show them: what has to stay normal, though it looks a little different."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import (
    EnsureTyped,
    OneOf,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    ThresholdIntensityd,
)
from monai.utils import MAX_SEED

from aeflow_monai.data.slice_copies import SliceCopies

__all__ = ["RandAcquisitiond", "VariedSlices"]

# How far acquisitions of normals differ, as is plausible and not more; a choice, see docs/results_choices.md.
_GAMMA = (0.75, 1.35)
_SIGMA = (0.3, 1.2)  # of the blur, pixels of the network's input
_NOISE = 0.03  # largest standard deviation, of intensities in [0, 1]
_MOVED = 0.05  # of the slice's size
_TURNED = math.radians(5)
_SCALED = (-0.08, 0.10)


class RandAcquisitiond(OneOf):  # type: ignore[misc]
    """Show slices as another acquisition might: brighter or darker, blurred, noisy, moved, or turned and scaled.

    One of these at a time, by MONAI's transforms; the intensities stay in [0, 1].

    Args:
        keys: of slices (C, H, W) in [0, 1], of one size.
        size: rows and columns of the slices.

    Example:
        >>> import torch
        >>> vary = RandAcquisitiond("image", size=[32, 32]).set_random_state(seed=0)
        >>> varied = vary({"image": torch.rand(1, 32, 32)})["image"]
        >>> tuple(varied.shape), bool(varied.min() >= 0), bool(varied.max() <= 1)
        ((1, 32, 32), True, True)
    """

    def __init__(self, keys: KeysCollection, size: Sequence[int]) -> None:
        affine = {"prob": 1.0, "padding_mode": "zeros"}
        super().__init__(
            [
                RandAdjustContrastd(keys, prob=1.0, gamma=_GAMMA),
                RandGaussianSmoothd(keys, sigma_x=_SIGMA, sigma_y=_SIGMA, prob=1.0),
                RandGaussianNoised(keys, prob=1.0, std=_NOISE),
                RandAffined(keys, translate_range=[_MOVED * length for length in size], **affine),
                RandAffined(keys, rotate_range=_TURNED, scale_range=[_SCALED, _SCALED], **affine),
            ]
        )
        self.within = [
            ThresholdIntensityd(keys, threshold=0.0, above=True, cval=0.0),
            ThresholdIntensityd(keys, threshold=1.0, above=False, cval=1.0),
            EnsureTyped(keys, track_meta=False),
        ]
        self._seeds: dict[int, int] = {}  # of the transforms that are not seeded yet, by index

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandAcquisitiond:
        """Seed the choice now, and a transform when it is chosen: to seed all takes longer than to apply one."""
        Randomizable.set_random_state(self, seed, state)
        self._seeds = {i: int(self.R.randint(MAX_SEED, dtype="uint32")) for i in range(len(self.transforms))}
        return self

    def __call__(self, data: Mapping[Any, Any], **options: Any) -> Any:
        """Vary the slices of an item."""
        before = self.R.get_state()
        chosen = int(self.R.multinomial(1, self.weights).argmax())
        self.R.set_state(before)  # `OneOf` draws the same number
        if chosen in self._seeds:
            self.transforms[chosen].set_random_state(seed=self._seeds.pop(chosen))
        varied = super().__call__(dict(data), **options)
        for transform in self.within:
            varied = transform(varied)
        return varied


class VariedSlices(SliceCopies):
    """Copies of each slice as other acquisitions might show it, always the same ones.

    Args:
        slices: items hold "image" (C, H, W) in [0, 1], of one size.
        seed: of the copies.
        copies: of each slice, 0 or more.
        folder: where to keep them, see `SliceCopies`.

    Raises:
        ValueError: copies is below 0.
    """

    def __init__(
        self,
        slices: Sequence[Mapping[str, Any]],
        seed: int = 0,
        copies: int = 1,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(slices, RandAcquisitiond("image", slices[0]["image"].shape[1:]), copies, seed, folder)

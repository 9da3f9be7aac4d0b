"""Normal slices as another acquisition might show them, so that such differences count as normal."""

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

# Plausible differences between acquisitions, chosen by hand; see docs/results_choices.md.
_GAMMA = (0.75, 1.35)
_SIGMA = (0.3, 1.2)  # standard deviation of the blur, in pixels of the network's input
_NOISE = 0.03  # largest standard deviation, for intensities in [0, 1]
_MOVED = 0.05  # largest shift, as a fraction of the slice's size
_TURNED = math.radians(5)
_SCALED = (-0.08, 0.10)


class RandAcquisitiond(OneOf):  # type: ignore[misc]
    """Vary slices as another acquisition might: brighter or darker, blurred, noisy, moved, or rotated and scaled.

    Applies one of MONAI's transforms at a time; the intensities stay in [0, 1].

    Args:
        keys: keys of slices (C, H, W) in [0, 1], of one size.
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
        self._seeds: dict[int, int] = {}  # seeds of the transforms that are not seeded yet, by index

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandAcquisitiond:
        """Seed the choice now, and each transform when it is chosen, since seeding all is slower than applying one."""
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
    """Reproducible copies of each slice as other acquisitions might show it.

    Args:
        slices: items hold "image" (C, H, W) in [0, 1], of one size.
        seed: seed of the copies.
        copies: copies of each slice, 0 or more.
        folder: where to store them, see `SliceCopies`.

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

"""A stack of slices: what is known of slices that are scored together, passed on as one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aeflow_monai.geometry import Places

__all__ = ["SliceStack", "foreground_of"]


class SliceStack(NamedTuple):
    """What the score of slices is made of: those of one plane of a volume, or images of their own.

    Attributes:
        weighted_sum: of the map's terms, (n, 1, H, W); see `Score`.
        dissimilarity: of each slice and its reconstruction, 1 - SSIM, mean over the foreground, (n,); 0 without any.
        foreground: which pixels are above 0, (n, 1, H, W), boolean.
        places: where the slices lie in their volume; None for images of their own.
        pooled: see `pooled_features`, (n, channels, parts); None of a method without.
    """

    weighted_sum: Tensor
    dissimilarity: Tensor
    foreground: Tensor
    places: Places | None
    pooled: Tensor | None = None

    def part(self, chosen: slice) -> SliceStack:
        """The stack of some of the slices."""
        places = None if self.places is None else self.places.part(chosen)
        pooled = None if self.pooled is None else self.pooled[chosen]
        foreground = self.foreground[chosen]
        return SliceStack(self.weighted_sum[chosen], self.dissimilarity[chosen], foreground, places, pooled)

    @classmethod
    def join(cls, parts: Sequence[SliceStack]) -> SliceStack:
        """The stack of several groups of slices, one after the other; all have places, or none has.

        Example:
            >>> one = SliceStack(torch.zeros(2, 1, 4, 4), torch.zeros(2), torch.ones(2, 1, 4, 4) > 0, None)
            >>> len(SliceStack.join([one, one]).weighted_sum)
            4
        """
        places = [part.places for part in parts if part.places is not None]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(
            torch.cat([part.weighted_sum for part in parts]),
            torch.cat([part.dissimilarity for part in parts]),
            torch.cat([part.foreground for part in parts]),
            Places.join(places) if places else None,
            torch.cat(pooled) if pooled else None,
        )


def foreground_of(image: Tensor) -> Tensor:
    """Where images (N, C, H, W) are above 0 in any channel: (N, 1, H, W), boolean."""
    return (image > 0).any(dim=1, keepdim=True)

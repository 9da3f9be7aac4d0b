"""A stack of slices: everything that is needed to score slices together, as one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aeflow_monai.geometry import Places

__all__ = ["SliceStack", "foreground_of"]


class SliceStack(NamedTuple):
    """Input of the slice scores: the slices of one plane of a volume, or 2D images.

    Attributes:
        weighted_sum: weighted sum of the map's terms, (n, 1, H, W); see `Score`.
        dissimilarity: 1 - SSIM of each slice and its reconstruction, mean over the foreground, (n,); 0 without
            foreground.
        foreground: which pixels are above 0, (n, 1, H, W), boolean.
        places: where the slices lie in their volume; None for 2D images.
        pooled: see `pooled_features`, (n, channels, parts); None for a method without them.
    """

    weighted_sum: Tensor
    dissimilarity: Tensor
    foreground: Tensor
    places: Places | None
    pooled: Tensor | None = None

    def part(self, chosen: slice) -> SliceStack:
        """Return the stack of a range of the slices."""
        places = None if self.places is None else self.places.part(chosen)
        pooled = None if self.pooled is None else self.pooled[chosen]
        foreground = self.foreground[chosen]
        return SliceStack(self.weighted_sum[chosen], self.dissimilarity[chosen], foreground, places, pooled)

    @classmethod
    def join(cls, parts: Sequence[SliceStack]) -> SliceStack:
        """Concatenate the stacks of several groups of slices; either all have places or none has.

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
    """Return where images (N, C, H, W) are above 0 in any channel: (N, 1, H, W), boolean."""
    return (image > 0).any(dim=1, keepdim=True)

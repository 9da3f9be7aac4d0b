"""Copies of slices that a random transform changes, each copy always in the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

__all__ = ["SliceCopies"]


class SliceCopies(Dataset[dict[str, Any]]):
    """Copies of slices, each as a random transform makes it.

    They are made when a slice is asked for, always the same ones: which, depends on the seed, the place and the
    transform. So they take no memory, and an encoder's features of them can be kept.

    Args:
        slices: items of a data set.
        transform: of MONAI's kind, with `set_random_state`.
        copies: of each slice, 0 or more.
        seed: of what is random.

    Raises:
        ValueError: copies is below 0.
    """

    def __init__(
        self, slices: Sequence[Mapping[Any, Any]], transform: Callable[..., Any], copies: int = 1, seed: int = 0
    ) -> None:
        if copies < 0:
            raise ValueError(f"Copies of each slice have to be 0 or more; got {copies}.")
        self.slices = slices
        self.transform: Any = transform
        self.copies = copies
        self.seed = seed

    def __len__(self) -> int:
        return self.copies * len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} of {len(self)} slices.")
        state = np.random.SeedSequence([self.seed, index]).generate_state(1)[0]
        self.transform.set_random_state(seed=int(state))
        copied = self.transform(self.slices[index % len(self.slices)])
        return {str(key): value for key, value in copied.items()}

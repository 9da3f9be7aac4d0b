"""Copies of slices that a random transform changes, each copy always in the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from aeflow_monai.data.kept_arrays import kept_array

__all__ = ["SliceCopies"]


class SliceCopies(Dataset[dict[str, Any]]):
    """Copies of slices, each as a random transform makes it.

    Each is made when it is first asked for, and kept, since making it takes longer than learning from it. They are
    always the same ones: which, depends on the seed, the place and the transform. They are kept in half precision,
    which changes intensities in [0, 1] by 0.0003 at most.

    Args:
        slices: items of a data set.
        transform: of MONAI's kind, with `set_random_state`.
        copies: of each slice, 0 or more.
        seed: of what is random.
        folder: where to keep them, in files that go with the process; in memory if None.

    Raises:
        ValueError: copies is below 0.
        OSError: there is no room for them; when the first one is made.
    """

    def __init__(
        self,
        slices: Sequence[Mapping[Any, Any]],
        transform: Callable[..., Any],
        copies: int = 1,
        seed: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        if copies < 0:
            raise ValueError(f"Copies of each slice have to be 0 or more; got {copies}.")
        self.slices = slices
        self.transform: Any = transform
        self.copies = copies
        self.seed = seed
        self.folder = folder
        self._is_made = np.zeros(len(self), dtype=bool)
        self._made: dict[str, Any] = {}  # what of the copies are images, by key: (n, C, H, W)

    def __len__(self) -> int:
        return self.copies * len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} of {len(self)} slices.")
        if not self._is_made[index]:
            self._make(index)
        made = {key: torch.from_numpy(images[index].astype(np.float32)) for key, images in self._made.items()}
        return {**self.slices[index % len(self.slices)], **made}

    def seed_of(self, index: int) -> int:
        """What a copy's transform is seeded with."""
        return int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])

    def _make(self, index: int) -> None:
        """Make a copy, and keep what of it are images."""
        self.transform.set_random_state(seed=self.seed_of(index))
        copied = self.transform(self.slices[index % len(self.slices)])
        for key, image in copied.items():
            if isinstance(image, Tensor):
                if key not in self._made:
                    self._made[key] = kept_array((len(self), *image.shape), np.float16, self.folder)
                self._made[key][index] = image.numpy()
        self._is_made[index] = True

"""Copies of slices, changed by a random transform in a reproducible way."""

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

_LARGEST = 1000.0  # far beyond [0, 1], but well within half precision


class SliceCopies(Dataset[dict[str, Any]]):
    """Copies of slices, each changed by a random transform.

    A copy is made on first access and stored, since making it takes longer than training on it. Stored copies are not
    shared between processes: the workers of a loader remake those that were not made before they started. A copy
    depends on the seed, its index and the transform only. Copies are stored in half precision, which changes
    intensities in [0, 1] by 0.0003 at most.

    Args:
        slices: items of a data set.
        transform: a MONAI transform with `set_random_state`.
        copies: copies of each slice, 0 or more.
        seed: seed of the transform.
        folder: where to store copies, in files that are deleted with the process; in memory if None.

    Raises:
        ValueError: copies is below 0; or a copy, when made, differs in shape from the others or is not in [0, 1].
        OSError: there is not enough space for them; raised when the first one is made.
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
        self._images: dict[str, Any] = {}  # copies by key: (n, C, H, W)
        self._others: dict[int, dict[str, Any]] = {}  # other entries of the copies made so far, by index

    def __len__(self) -> int:
        return self.copies * len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} of {len(self)} slices.")
        if index not in self._others:
            self._make(index)
        images = {key: torch.from_numpy(kept[index].astype(np.float32)) for key, kept in self._images.items()}
        return {**self._others[index], **images}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out stored copies, which another process remakes."""
        return {**vars(self), "_images": {}, "_others": {}}

    def seed_of(self, index: int) -> int:
        """Return the seed of a copy's transform."""
        return int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])

    def _make(self, index: int) -> None:
        """Make and store a copy."""
        self.transform.set_random_state(seed=self.seed_of(index))
        copied = {str(key): value for key, value in self.transform(self.slices[index % len(self.slices)]).items()}
        images = {key: np.asarray(value) for key, value in copied.items() if isinstance(value, (Tensor, np.ndarray))}
        if not self._images:
            self._images = {
                key: kept_array((len(self), *image.shape), np.float16, self.folder, "copies of slices")
                for key, image in images.items()
            }
        shapes = {key: kept.shape[1:] for key, kept in self._images.items()}
        if (found := {key: image.shape for key, image in images.items()}) != shapes:
            raise ValueError(f"Copies have to be of one shape: {shapes} so far, now {found}. Set slicer#fit to resize.")
        for key, image in images.items():
            if not np.abs(image).max(initial=0) <= _LARGEST:
                raise ValueError(f"Expected slices in [0, 1]; got a copy with {key} beyond {_LARGEST:g}, or NaN.")
            self._images[key][index] = image
        self._others[index] = {key: value for key, value in copied.items() if key not in images}

"""Normal slices as they could have been taken otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

__all__ = ["VariedSlices"]


class VariedSlices(Dataset[dict[str, Any]]):
    def __init__(self, slices: Sequence[Mapping[Any, Any]], transform: Any, copies: int = 1, seed: int = 0) -> None:
        self.slices, self.transform, self.copies, self.seed = slices, transform, copies, seed
        self.index = slices.index

    def __len__(self) -> int:
        return (1 + self.copies) * len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        item = dict(self.slices[index % len(self.slices)])
        if index >= len(self.slices):
            state = np.random.SeedSequence([self.seed, 1, index]).generate_state(1)[0]
            self.transform.set_random_state(seed=int(state))
            image = item["image"]
            varied = self.transform({"image": image})["image"]
            varied = varied.as_tensor() if hasattr(varied, "as_tensor") else varied
            item["image"] = varied.clamp(0, 1).contiguous()
        return item

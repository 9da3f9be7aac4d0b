"""Abnormal slices beside the normal ones, labelled or with synthetic lesions, and how they enter the batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

__all__ = ["LabelledSampler", "LabelledSlices"]


class LabelledSlices(Dataset[dict[str, Any]]):
    """Normal slices, then abnormal ones; each item says under "abnormal" what of it is: (1, H, W) in [0, 1].

    And under "is_target" whether the decoder is to reconstruct it: a normal slice as it is. From copies only the flow
    learns what else is normal.

    Args:
        normal: slices whose every position is normal, the copies among them last; items hold "image" (C, H, W).
        abnormal: slices with a lesion somewhere, labelled or of `LesionSlices`, or None for none. All of a slice counts
            as abnormal, unless its item has the mask of its lesions under "lesion", (1, H, W) in [0, 1].
        n_copies: how many of the normal ones are copies of the others.

    Raises:
        ValueError: all of the normal slices are copies.

    Example:
        >>> image = torch.zeros(1, 4, 4)
        >>> slices = LabelledSlices([{"image": image}, {"image": image}], [{"image": image}])
        >>> [float(item["abnormal"].mean()) for item in slices]
        [0.0, 0.0, 1.0]
    """

    def __init__(
        self,
        normal: Sequence[Mapping[str, Any]],
        abnormal: Sequence[Mapping[str, Any]] | None = None,
        n_copies: int = 0,
    ) -> None:
        self.n_targets = len(normal) - n_copies
        if n_copies < 0 or self.n_targets < 1:
            raise ValueError(f"Of {len(normal)} normal slices {n_copies} cannot be copies of the others.")
        self.normal = normal
        self.abnormal = () if abnormal is None else abnormal

    def __len__(self) -> int:
        return len(self.normal) + len(self.abnormal)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} of {len(self)} slices.")
        n_normal = len(self.normal)
        if index < n_normal:
            item = dict(self.normal[index])
            return {**item, "abnormal": torch.zeros_like(item["image"][:1]), "is_target": index < self.n_targets}
        item = dict(self.abnormal[index - n_normal])
        mask = item.pop("lesion", None)
        abnormal = torch.ones_like(item["image"][:1]) if mask is None else mask
        return {**item, "abnormal": abnormal, "is_target": False}


class LabelledSampler(DistributedSampler[int]):
    """The order of an epoch: all normals once, and before every few of them an abnormal one.

    Abnormal slices are few, so they come again within an epoch: all of them in a new order, then all again. Without
    any the order is that of torch's `DistributedSampler`. It depends on seed and epoch only. Several processes take
    turns in it: their n-th batches together are the n-th batch of one process, where that is as large.

    Args:
        dataset: the slices, or what has the same items in the same order.
        normals_per_abnormal: normal slices from one abnormal to the next, 1 or more.
        num_replicas: number of processes.
        rank: of this process.
        seed: of the order.
        drop_last: leave out a remainder of fewer slices than processes instead of repeating some.

    Raises:
        ValueError: normals_per_abnormal is below 1.

    Example:
        >>> slices = LabelledSlices([{}] * 6, [{}])
        >>> [index >= 6 for index in LabelledSampler(slices, normals_per_abnormal=3)]
        [True, False, False, False, True, False, False, False]
    """

    def __init__(
        self,
        dataset: LabelledSlices,
        normals_per_abnormal: int = 2,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if normals_per_abnormal < 1:
            raise ValueError(f"normals_per_abnormal has to be 1 or more; got {normals_per_abnormal}.")
        normal = cast("Dataset[int]", dataset.normal)
        super().__init__(normal, num_replicas, rank, shuffle=True, seed=seed, drop_last=drop_last)
        self.every = normals_per_abnormal
        self.n_normal, self.n_abnormal = len(dataset.normal), len(dataset.abnormal)
        self.n_drawn = self.n_normal // self.every if self.n_abnormal else 0
        total = self.n_normal + self.n_drawn
        self.num_samples = total // num_replicas if drop_last else math.ceil(total / num_replicas)
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        repeated = order * math.ceil(self.total_size / len(order))
        return iter(repeated[self.rank : self.total_size : self.num_replicas])

    def _order(self) -> list[int]:
        """The epoch of all processes."""
        normal = self._rounds(self.n_normal, self.n_normal)  # as DistributedSampler shuffles them
        abnormal = self._rounds(self.n_abnormal, self.n_drawn)
        order = []
        for place, index in enumerate(normal):
            # before its normals, so that an epoch's last batch has a normal slice, however short it is
            block, place_in_block = divmod(place, self.every)
            if place_in_block == 0 and block < self.n_drawn:
                order.append(self.n_normal + abnormal[block])
            order.append(index)
        return order

    def _rounds(self, count: int, wanted: int) -> list[int]:
        """As many rounds through the numbers below a count, each in a new order, as it takes."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = []
        while len(order) < wanted:
            order += torch.randperm(count, generator=generator).tolist()
        return order

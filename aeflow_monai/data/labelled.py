"""Abnormal slices, labelled or with synthetic lesions, beside normal ones, and their order in the batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

__all__ = ["LabelledSampler", "LabelledSlices"]


class LabelledSlices(Dataset[dict[str, Any]]):
    """Normal slices followed by abnormal ones; "abnormal" of each item, (1, H, W) in [0, 1], marks what is abnormal.

    "is_target" is true for slices that the decoder learns to reconstruct: normal slices, but not their copies, which
    train the flow only.

    Args:
        normal: entirely normal slices, with copies last; items hold "image" (C, H, W).
        abnormal: slices with a lesion, labelled or from `LesionSlices`; None for none. An entire slice counts as
            abnormal unless its item has a lesion mask under "lesion", (1, H, W) in [0, 1].
        n_copies: number of normal slices that are copies of others.

    Raises:
        ValueError: all normal slices are copies.

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
    """The order of an epoch: each normal slice once, with an abnormal one before every few of them.

    Abnormal slices are few, so an epoch repeats them: all in a new order, then all again. Without any, the order is
    that of torch's `DistributedSampler`. It depends on seed and epoch only. Several processes take turns in it: their
    n-th batches together form the n-th batch of a single process with the total batch size.

    Args:
        dataset: the slices, or a data set with the same items in the same order.
        normals_per_abnormal: normal slices between abnormal ones, 1 or more.
        num_replicas: number of processes.
        rank: rank of this process.
        seed: seed of the order.
        drop_last: drop a remainder of fewer slices than processes instead of repeating some.

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
        """Return the order of the epoch over all processes."""
        normal = self._rounds(self.n_normal, self.n_normal)  # in the order of DistributedSampler
        abnormal = self._rounds(self.n_abnormal, self.n_drawn)
        order = []
        for place, index in enumerate(normal):
            # before its normal slices, so that the last batch of an epoch has a normal slice, however short it is
            block, place_in_block = divmod(place, self.every)
            if place_in_block == 0 and block < self.n_drawn:
                order.append(self.n_normal + abnormal[block])
            order.append(index)
        return order

    def _rounds(self, count: int, wanted: int) -> list[int]:
        """Return shuffled rounds through `range(count)`, at least `wanted` numbers in all."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = []
        while len(order) < wanted:
            order += torch.randperm(count, generator=generator).tolist()
        return order

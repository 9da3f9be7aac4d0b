"""A datalist of which one bad case does not end a run: its failure is recorded, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from aeflow_monai.errors import Failure, failure_of

__all__ = ["GuardedDataset", "recorded_failure"]

# What stands in the place of an item that could not be loaded; strings, which any loader can collate and send.
_FAILURE = "failure"


class GuardedDataset(Dataset[dict[str, Any]]):
    """A datalist whose items are transformed when they are asked for; one that fails becomes a record of its failure.

    It has as many items as the datalist, whatever fails, and works in any data loader with a batch size of 1, with
    workers or without. `GuardedEvaluator` reports the records.

    Args:
        data: a datalist.
        transform: gives a dictionary for an item.

    Example:
        >>> dataset = GuardedDataset([{"case": "a", "image": "a.png"}], lambda item: item["nothing"])
        >>> dataset[0]
        {'case': 'a', 'file': 'a.png', 'stage': 'read', 'failure': "KeyError: 'nothing'"}
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> None:
        self.data = data
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        try:
            return dict(self.transform(item))
        except Exception as error:
            *known, message = failure_of(item, "read", error)
            return {**dict(zip(Failure._fields[:-1], known, strict=True)), _FAILURE: message}


def recorded_failure(batch: Mapping[str, Any]) -> Failure | None:
    """The failure that a batch of one item of a `GuardedDataset` stands for; None if it was loaded."""
    if _FAILURE not in batch:
        return None
    return Failure(*(batch[name][0] for name in (*Failure._fields[:-1], _FAILURE)))

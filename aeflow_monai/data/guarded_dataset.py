"""A data set in which a case that fails to load is recorded, so that it does not stop the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from aeflow_monai.errors import Failure, failure_of

__all__ = ["GuardedDataset", "recorded_failure"]

# Key of the record that replaces an item that failed to load; its values are strings, which any loader can collate.
_FAILURE = "failure"


class GuardedDataset(Dataset[dict[str, Any]]):
    """A data set that transforms the items of a datalist on access; an item that fails becomes a failure record.

    It always has as many items as the datalist, and works in any data loader with a batch size of 1, with or without
    workers. `GuardedEvaluator` reports the records.

    Args:
        data: a datalist.
        transform: maps an item to a dictionary.

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
    """Return the failure recorded in a batch of one item of a `GuardedDataset`; None if the item was loaded."""
    if _FAILURE not in batch:
        return None
    return Failure(*(batch[name][0] for name in (*Failure._fields[:-1], _FAILURE)))

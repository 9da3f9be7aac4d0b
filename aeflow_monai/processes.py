"""What the processes of one training tell each other, by torch.distributed; a process alone only tells itself."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["gathered", "n_processes", "process_number", "summed", "wait_for_all"]

_T = TypeVar("_T")


def n_processes() -> int:
    """Number of processes of this training; 1 if it has not begun in several."""
    return dist.get_world_size() if _are_several() else 1


def process_number() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _are_several() else 0


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, without a gradient; every process has to call it.

    Args:
        values: of this process, of the same shape in all.

    Example:
        >>> summed(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    total = values.detach().clone()
    if _are_several():
        dist.all_reduce(total)
    return total


def gathered(part: _T) -> list[_T]:
    """What each process has, by its number; every process has to call it.

    Args:
        part: of this process; anything that can be pickled.

    Example:
        >>> gathered("all of it")
        ['all of it']
    """
    if not _are_several():
        return [part]
    parts: list[_T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts  # type: ignore[return-value]


def wait_for_all() -> None:
    """Wait until every process has come to this place."""
    if _are_several():
        dist.barrier()


def _are_several() -> bool:
    return torch.distributed.is_available() and dist.is_initialized()

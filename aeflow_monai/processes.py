"""Communication between the processes of one training, by torch.distributed; a single process has only itself."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["gathered", "n_processes", "process_number", "summed", "wait_for_all"]

_T = TypeVar("_T")


def n_processes() -> int:
    """Return the number of processes of this training; 1 if it is not distributed."""
    return dist.get_world_size() if _are_several() else 1


def process_number() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _are_several() else 0


def summed(values: Tensor) -> Tensor:
    """Return the sum over all processes, without a gradient; every process has to call it.

    Args:
        values: values of this process, of the same shape in all.

    Example:
        >>> summed(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    total = values.detach().clone()
    if _are_several():
        dist.all_reduce(total)
    return total


def gathered(part: _T) -> list[_T]:
    """Return the objects of all processes, by process number; every process has to call it.

    Args:
        part: object of this process; anything that can be pickled.

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
    """Wait until every process has reached this call."""
    if _are_several():
        dist.barrier()


def _are_several() -> bool:
    return torch.distributed.is_available() and dist.is_initialized()

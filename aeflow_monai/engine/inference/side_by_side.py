"""Batches that a CPU computes at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor

__all__ = ["side_by_side", "sides_of"]


def sides_of(device: torch.device) -> int:
    """Batches to compute at the same time: on a CPU, two on half of the cores each are faster than one on all."""
    # a graph of gradients is not put together from several threads
    return 2 if device.type == "cpu" and torch.get_num_threads() > 1 and not torch.is_grad_enabled() else 1


def side_by_side(function: Callable[[Tensor], None], items: Sequence[Tensor], sides: int) -> None:
    """Call a function without gradients for each of the items, in so many threads that share the cores."""
    if sides == 1:
        for item in items:
            function(item)
        return
    n_threads = torch.get_num_threads()
    begun = Barrier(sides + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first question sets it to the number of all
        torch.set_num_threads(max(1, n_threads // sides))
        begun.wait()

    def call(item: Tensor) -> None:
        with torch.no_grad():  # which holds for the thread that says it
            function(item)

    with ThreadPoolExecutor(sides, initializer=begin) as pool:
        calls = pool.map(call, items)
        begun.wait()
        torch.set_num_threads(n_threads)  # of the threads that begin from now on
        for _ in calls:  # which raises what was raised
            pass

"""Parallel computation of batches on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor

__all__ = ["side_by_side", "sides_of"]


def sides_of(device: torch.device) -> int:
    """Return the number of parallel batches: on a CPU, two on half of the cores each are faster than one on all."""
    # the graph for gradients cannot be built from several threads
    return 2 if device.type == "cpu" and torch.get_num_threads() > 1 and not torch.is_grad_enabled() else 1


def side_by_side(function: Callable[[Tensor], None], items: Sequence[Tensor], sides: int) -> None:
    """Call a function on each of the items without gradients, in this many threads that share the cores."""
    if sides == 1:
        for item in items:
            function(item)
        return
    n_threads = torch.get_num_threads()
    begun = Barrier(sides + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first call in a thread resets the number, so it comes before the setting
        torch.set_num_threads(max(1, n_threads // sides))
        begun.wait()

    def call(item: Tensor) -> None:
        with torch.no_grad():  # the setting is local to the thread
            function(item)

    with ThreadPoolExecutor(sides, initializer=begin) as pool:
        calls = pool.map(call, items)
        begun.wait()
        torch.set_num_threads(n_threads)  # for threads that start later
        for _ in calls:  # raises the errors of the calls
            pass

"""Numbers of the processes that `torchrun` has launched, before they are connected."""

from __future__ import annotations

import os

__all__ = ["is_first_of_node", "is_first_process", "n_launched"]


def n_launched() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Return whether this is the only process of a run, or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_of_node() -> bool:
    """Return whether this is the only process on its machine, or the first of several."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0

"""Imports of the large libraries that a run takes: torch and MONAI, and what they bring along."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_collection"]


@contextmanager
def without_collection() -> Iterator[None]:
    """Import without looking for garbage, neither meanwhile nor ever again among what is imported.

    Nothing of a library becomes garbage. To look through its objects again and again while it is imported, and once
    more when the process ends, takes seconds of a run on one volume (benchmarks/volume_command.py).

    Example:
        >>> with without_collection():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
        atexit.unregister(gc.freeze)  # once is enough
        atexit.register(gc.freeze)
    finally:
        if was_enabled:
            gc.enable()

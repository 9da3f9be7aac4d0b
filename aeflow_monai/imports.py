"""Imports of the large libraries that a run takes: torch and MONAI, and what they bring along; late, or fast."""

from __future__ import annotations

import atexit
import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["import_names", "without_collection"]


def import_names(*packages: str) -> None:
    """Import all public names of packages now, those that would be imported when they are first used.

    Args:
        packages: their full names.

    Example:
        >>> import_names("aeflow_monai.archive")
    """
    for package in packages:
        module = importlib.import_module(package)
        for name in module.__all__:
            getattr(module, name)


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

"""Lazy or faster imports of large libraries: torch, MONAI and their dependencies."""

from __future__ import annotations

import atexit
import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["import_names", "without_collection"]


def import_names(*packages: str) -> None:
    """Import all public names of packages now that would otherwise be imported on first use.

    Args:
        packages: full names of the packages.

    Example:
        >>> import_names("aeflow_monai.archive")
    """
    for package in packages:
        module = importlib.import_module(package)
        for name in module.__all__:
            getattr(module, name)


@contextmanager
def without_collection() -> Iterator[None]:
    """Import without garbage collection, and exclude the imported objects from later collections.

    No object of a library becomes garbage. Traversing them again and again during the import, and once more at exit,
    takes seconds of a run on one volume (benchmarks/volume_command.py).

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

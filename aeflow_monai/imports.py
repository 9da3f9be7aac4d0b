"""Imports of the large libraries that a run takes: torch and MONAI, and what they bring along; late, or fast."""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["import_names", "on_first_use", "without_collection"]


def on_first_use(
    package: str, places: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package whose names are imported when they are first used.

    To import torch and MONAI takes seconds, which a command that needs neither should not wait for.

    Args:
        package: its full name.
        places: from each of its modules to the public names of the package that are there.

    Returns:
        Both functions. The first finds all modules of the package too.

    Example:
        >>> find, names = on_first_use("aeflow_monai.archive", {"shard": ["SHARDS", "Shard"]})
        >>> find("SHARDS"), "Shard" in names()
        ('shards', True)
        >>> find("shards")
        Traceback (most recent call last):
        AttributeError: module 'aeflow_monai.archive' has no attribute 'shards'
    """
    module_of = {name: module for module, names in places.items() for name in names}

    def find(name: str) -> Any:
        if name in module_of:
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        if importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *module_of})

    return find, names


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

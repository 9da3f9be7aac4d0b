"""Arrays that a training computes once and reads in every epoch, in memory or in memory-mapped files."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["kept_array", "mapped_array"]


def kept_array(shape: Sequence[int], kind: type[np.floating[Any]], folder: str | Path | None, holds: str) -> Any:
    """Make an array to be filled, in memory or in an unlinked file, which disappears with the processes that use it.

    Args:
        shape: shape of the array.
        kind: type of its numbers.
        folder: folder of the file; in memory if None.
        holds: purpose of the array, for messages.

    Raises:
        OSError: there is not enough space for the file.
    """
    if folder is None:
        return np.empty(shape, dtype=kind)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return mapped_array(file, shape, kind, folder, holds)


def mapped_array(
    file: IO[bytes], shape: Sequence[int], kind: type[np.floating[Any]], folder: str | Path, holds: str
) -> Any:
    """Map an array in an open file.

    Raises:
        OSError: there is not enough space for it.
    """
    n_bytes = np.dtype(kind).itemsize * math.prod(shape)
    try:
        if hasattr(os, "posix_fallocate"):  # a full disk raises an error here, but would kill the process later
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        return np.memmap(file, dtype=kind, mode="w+", shape=tuple(shape))
    except OSError as error:
        wanted = f"{n_bytes / 2**20:.0f} MB for {holds}, see cache_dir"
        raise OSError(error.errno, f"{error.strerror}: {wanted}", str(folder)) from error

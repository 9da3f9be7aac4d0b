"""The memory that a CPU gives a network."""

from __future__ import annotations

import ctypes
import logging

__all__ = ["keep_freed_memory"]

_logger = logging.getLogger(__name__)


def keep_freed_memory(up_to: int = 2**28) -> None:
    """Let glibc keep the big buffers that a network frees instead of giving each back to the system.

    Activations of tens of megabytes are otherwise mapped, zeroed and unmapped by the kernel for every layer, which
    makes the default encoder three times slower on a CPU (benchmarks/allocator_speed.py). All threads share what is
    kept: each would otherwise have a store of its own. What is larger than the activations, as a large volume is, goes
    back to the system. Elsewhere than on glibc nothing is done.

    Args:
        up_to: bytes of the largest buffer that is kept.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        _logger.debug("no glibc: its allocator is not tuned")
        return
    top_pad, trim_threshold, mmap_threshold, arena_max = -2, -1, -3, -8  # of malloc.h
    if not (mallopt(mmap_threshold, up_to) or mallopt(mmap_threshold, 2**25)):
        _logger.debug("glibc refuses to change its allocator")
        return
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)
    mallopt(arena_max, 1)

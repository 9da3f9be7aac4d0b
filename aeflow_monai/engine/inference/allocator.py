"""Memory allocation of a network on a CPU."""

from __future__ import annotations

import ctypes
import logging

__all__ = ["keep_freed_memory"]

_logger = logging.getLogger(__name__)


def keep_freed_memory(up_to: int = 2**28) -> None:
    """Make glibc keep the large buffers that a network frees instead of returning them to the system.

    Otherwise the kernel maps, zeroes and unmaps activations of tens of megabytes for every layer, which makes the
    default encoder three times slower on a CPU (benchmarks/allocator_speed.py). All threads share one arena, since each
    would otherwise keep its own buffers. Buffers larger than the activations, such as a large volume, are still
    returned. Without glibc this does nothing.

    Args:
        up_to: size of the largest buffer that is kept, in bytes.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        _logger.debug("no glibc: its allocator is not tuned")
        return
    top_pad, trim_threshold, mmap_threshold, arena_max = -2, -1, -3, -8  # from malloc.h
    if not (mallopt(mmap_threshold, up_to) or mallopt(mmap_threshold, 2**25)):
        _logger.debug("glibc refuses to change its allocator")
        return
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)
    mallopt(arena_max, 1)

"""Fast gzip: that of ISA-L if there is a wheel of it for this machine, else that of Python."""

from __future__ import annotations

import zlib
from typing import Any

try:
    from isal import igzip as gzip  # as small as zlib's level 1 in a fraction of the time, see benchmarks/writing.py
    from isal import isal_zlib

    _OF_ISAL: tuple[Any, ...] = (isal_zlib.error,)
except ImportError:  # no wheel for this machine
    import gzip

    _OF_ISAL = ()

__all__ = ["DAMAGED", "gzip"]

# Errors of reading a damaged file.
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, *_OF_ISAL)

"""Standard output and error that survive a closed pipe, as after `head`, so that the run completes its outputs."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO, cast

__all__ = ["flush_streams", "has_reader_left", "lasting"]


def lasting(stream: TextIO | None) -> TextIO:
    """Wrap a stream so that it accepts text after its reader has left, or if it was closed from the start.

    Args:
        stream: `sys.stdout` or `sys.stderr`.
    """
    return cast(TextIO, _Lasting(stream or open(os.devnull, "w", encoding="utf-8")))  # noqa: PTH123


class _Lasting:
    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return self.stream.write(text)
        except OSError as error:
            if not has_reader_left(error):
                raise
            _silence(self.stream)
            return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self.stream.flush()
        except OSError as error:
            if not has_reader_left(error):
                raise
            _silence(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)  # for example isatty and encoding


def has_reader_left(error: OSError) -> bool:
    """Whether writing to a stream failed because its reader has closed it.

    Example:
        >>> has_reader_left(BrokenPipeError()), has_reader_left(OSError(errno.ENOSPC, "No space left on device"))
        (True, False)
    """
    on_windows = sys.platform == "win32"  # Windows raises this for a pipe whose other end is closed
    return isinstance(error, BrokenPipeError) or (on_windows and error.errno == errno.EINVAL)


def flush_streams() -> None:
    """Flush standard output and error, so that Python reports no error at exit."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            _Lasting(stream).flush()


def _silence(stream: TextIO) -> None:
    """Discard pending and further output of a stream."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

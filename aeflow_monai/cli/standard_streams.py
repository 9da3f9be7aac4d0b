"""Standard output and error, whose readers may leave, as `head` does: the run goes on, and what it writes is whole."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO, cast

__all__ = ["flush_streams", "has_reader_left", "lasting"]


def lasting(stream: TextIO | None) -> TextIO:
    """A stream that takes text when nobody reads it any more, and when it was closed before the start.

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
        """Send what is written on its way."""
        try:
            self.stream.flush()
        except OSError as error:
            if not has_reader_left(error):
                raise
            _silence(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)  # such as isatty and encoding


def has_reader_left(error: OSError) -> bool:
    """Whether a stream could not be written because nobody reads it any more.

    Example:
        >>> has_reader_left(BrokenPipeError()), has_reader_left(OSError(errno.ENOSPC, "No space left on device"))
        (True, False)
    """
    on_windows = sys.platform == "win32"  # which says so of a pipe whose other end is closed
    return isinstance(error, BrokenPipeError) or (on_windows and error.errno == errno.EINVAL)


def flush_streams() -> None:
    """Send what is written on its way, so that Python has nothing to complain of when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            _Lasting(stream).flush()


def _silence(stream: TextIO) -> None:
    """Let what is written from now on, and what waits to be, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

"""Check that results can be written, before anything is computed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from aeflow_monai.files import user_path

__all__ = ["require_writable"]


def require_writable(folder: str | Path, option: str) -> None:
    """Raise an error if nothing can be written in a folder; no file or folder is left behind.

    Args:
        folder: folder of the results, which need not exist.
        option: name of the option that it was given by.

    Raises:
        NotADirectoryError: it, or a folder above it, is a file.
        OSError: nothing can be written there.

    Example:
        >>> require_writable("/dev/null/RUN", "output_dir")
        Traceback (most recent call last):
        NotADirectoryError: output_dir: expected a folder; got the file /dev/null. Give another one with --output_dir.
    """
    place = user_path(folder).absolute()
    remedy = f"Give another one with --{option}."
    try:
        there = next(path for path in (place, *place.parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(f"{option}: expected a folder; got the file {there}. {remedy}")
        with tempfile.TemporaryFile(dir=there):
            pass
    except NotADirectoryError as error:
        raise error
    except OSError as error:
        raise type(error)(f"{option}: nothing can be written to {place}: {error.strerror}. {remedy}") from error

"""Locks of folders: one run at a time writes to a folder, a second one raises an error."""

from __future__ import annotations

import atexit
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import filelock

from aeflow_monai.files import read_json, write_json

__all__ = ["FolderInUse", "claim_folder", "release_all", "release_folder", "turn_in"]

# The lock is released with its process, however it ends; the note names the process for others.
_LOCK, _NOTE = ".lock", ".lock.json"
_held: dict[Path, filelock.BaseFileLock] = {}
_made: set[Path] = set()


class FolderInUse(RuntimeError):
    """Another run writes to the folder."""


def claim_folder(folder: str | Path, option: str) -> None:
    """Keep other processes from writing to a folder until this one ends, or `release_folder`.

    Args:
        folder: the folder, created if it is missing, and removed with the claim if nothing was written to it.
        option: name of the option that it was given by, for the message.

    Raises:
        FolderInUse: another process has claimed it; names that process and its start.
        OSError: nothing can be written there.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> claim_folder(folder, "output_dir")
        >>> sorted(file.name for file in Path(folder).iterdir())
        ['.lock', '.lock.json']
        >>> release_folder(folder)
        >>> list(Path(folder).iterdir())
        []
    """
    folder = Path(folder).resolve()
    if folder in _held:
        return
    if not folder.exists():
        _made.add(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise FolderInUse(
            f"Another run writes to {folder}: {_holder(folder)}. Wait until it has ended, or give another folder with "
            f"--{option}."
        ) from error
    if not _held:
        atexit.register(release_all)
    _held[folder] = lock
    note = {
        "process": os.getpid(),
        "machine": platform.node(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "program": Path(sys.argv[0]).name if sys.argv else "",
    }
    write_json(folder / _NOTE, note)


def release_folder(folder: str | Path) -> None:
    """Release a folder for other processes; nothing happens if this process has not claimed it.

    Args:
        folder: see `claim_folder`.
    """
    folder = Path(folder).resolve()
    if (lock := _held.pop(folder, None)) is not None:
        # before the lock is released, so that nothing of the next process is removed
        for name in (_NOTE, _LOCK):
            (folder / name).unlink(missing_ok=True)
        lock.release()
        if folder in _made and not any(folder.iterdir()):
            folder.rmdir()
        _made.discard(folder)


def release_all() -> None:
    """Release all folders that this process has claimed."""
    for folder in list(_held):
        try:
            release_folder(folder)
        except OSError:  # the folder may be gone; the lock is released with the process
            continue


@contextmanager
def turn_in(folder: str | Path, timeout: float = 60.0) -> Iterator[None]:
    """Wait until no other process or thread works in a folder, to read and replace a file there.

    Args:
        folder: an existing folder.
        timeout: longest wait in seconds.

    Raises:
        OSError: nothing can be written there, or the timeout has expired.

    Example:
        >>> import tempfile
        >>> with turn_in(tempfile.mkdtemp()):
        ...     pass
    """
    path = Path(folder, _LOCK)
    with filelock.FileLock(path, timeout=timeout):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _holder(folder: Path) -> str:
    try:
        note = read_json(folder / _NOTE)
    except ValueError:
        note = {}
    if not note:
        return "one that has just begun"
    return f"process {note.get('process')} on {note.get('machine')}, since {note.get('started')}"

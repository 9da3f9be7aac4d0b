"""Atomic writing of files and folders, JSON, and paths."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import uuid
import zlib
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "case_file_name",
    "home",
    "new_folder",
    "read_json",
    "replacing",
    "replacing_together",
    "sweep",
    "unfinished_path",
    "user_path",
    "write_json",
]

# Suffix of unfinished files: machine, process and a number. No finished file has it.
_UNFINISHED = ".unfinished-{machine}-{process}-{number}"
_LEFT = re.compile(r"\.unfinished-(\w+)-(\d+)-")


def home(*parts: str) -> str:
    """Return the folder for files without another place: $AEFLOW_HOME, or ~/.aeflow_monai.

    Args:
        parts: names of subfolders.

    Returns:
        The path, which is not created.
    """
    root = os.environ.get("AEFLOW_HOME") or Path.home() / ".aeflow_monai"
    return str(user_path(Path(root, *parts)).absolute())


def user_path(path: str | os.PathLike[str]) -> Path:
    """Expand a path like a shell: `~` is the home folder, `~name` that of a user, or a plain name without such a user.

    Example:
        >>> user_path("~/data") == Path.home() / "data", user_path("~nobody's")
        (True, PosixPath("~nobody's"))
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


def unfinished_path(path: str | Path) -> Path:
    """Return a path beside another one, with the same suffix, for its unfinished content; see `sweep`."""
    path = Path(path)
    name = _UNFINISHED.format(machine=_machine(), process=os.getpid(), number=uuid.uuid4().hex[:8])
    return path.with_name(name + "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name beside its place, and move it there when it is complete.

    Readers of an earlier file of this name see it complete meanwhile. If the block raises an error, nothing is left
    behind; the files of a killed process are removed by `sweep`.

    Args:
        path: path of the file; missing folders are created.

    Yields:
        The path to write to, with the same suffix.

    Raises:
        OSError: an error of the block, for example a full disk; it names the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "report.txt")
        >>> with replacing(path) as unfinished:
        ...     _ = unfinished.write_text("done")
        ...     path.exists()
        False
        >>> path.read_text()
        'done'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # in the same folder, since replacing is atomic only within a file system
    unfinished = unfinished_path(path)
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(unfinished)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def replacing_together(folder: str | Path) -> Iterator[Path]:
    """Write files that belong together in a temporary folder, and move all of them when they are complete.

    If the block raises an error, none of them is written, and earlier files of these names are kept.

    Args:
        folder: folder of the files, created if it is missing.

    Yields:
        The folder to write to, in which the files have their final names.

    Raises:
        OSError: an error of the block, for example a full disk; it names the file in its final place.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing_together(folder) as unfinished:
        ...     _ = (unfinished / "model.xml").write_text("layers"), (unfinished / "model.bin").write_text("weights")
        ...     (folder / "model.xml").exists()
        False
        >>> sorted(file.name for file in folder.iterdir())
        ['model.bin', 'model.xml']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    unfinished = unfinished_path(folder / "files")
    unfinished.mkdir()
    try:
        yield unfinished
        places = {path: folder / path.name for path in unfinished.iterdir()}
        if in_the_way := next(filter(Path.is_dir, places.values()), None):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(in_the_way))
        for path, place in places.items():
            path.replace(place)
    except OSError as error:
        if error.errno is None or not Path(error.filename or "").is_relative_to(unfinished):
            raise
        raise OSError(error.errno, error.strerror, str(folder / Path(error.filename).name)) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Write a folder under a temporary name beside its place, and move it there when it is complete.

    If the block raises an error, nothing is left behind. Leftovers of killed processes beside it are removed.

    Args:
        path: path of the folder, which may exist if it is empty; missing parents are created.

    Yields:
        The folder to write to.

    Raises:
        OSError: something else was created at this path meanwhile.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "maps")
        >>> with new_folder(path) as unfinished:
        ...     (unfinished / "scores.csv").touch()
        ...     path.exists()
        False
        >>> [file.name for file in path.iterdir()]
        ['scores.csv']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    unfinished = unfinished_path(path)
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # already moved, unless something failed


def sweep(folder: str | Path) -> list[str]:
    """Remove unfinished files of this machine's killed processes from a folder.

    Args:
        folder: the folder, without subfolders; it need not exist.

    Returns:
        Names of the removed files.
    """
    gone = []
    for path in Path(folder).glob(".unfinished-*"):
        found = _LEFT.match(path.name)
        if found and found[1] == _machine() and not _is_running(int(found[2])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            gone.append(path.name)
    return gone


@cache
def _machine() -> str:
    """Return a number for this machine, since process numbers are unique only within it."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_running(process: int) -> bool:
    if os.name == "nt":  # signal 0 would not be a query
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file atomically.

    Args:
        path: path of the file, replaced if it exists; missing folders are created.
        content: JSON-serialisable content; the order of keys is kept.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not support.
        TypeError: the content is not JSON-serialisable.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(f"{folder}/report.json", {"n": 3, "auroc": 0.5})
        ...     print(Path(folder, "report.json").read_text(), end="")
        {
          "n": 3,
          "auroc": 0.5
        }
    """
    text = json.dumps(content, indent=2, sort_keys=False, allow_nan=False) + "\n"
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file; return an empty dictionary if there is none.

    Raises:
        ValueError: it is damaged; names the file.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON, or damaged: {error}. Restore the file.") from error
    if not isinstance(content, dict):
        raise ValueError(f"Expected a dictionary in {path}; got a {type(content).__name__}. Restore the file.")
    return content


def case_file_name(data: Mapping[Hashable, Any]) -> str:
    """Return the case's name for file names, which must not lead out of the output folder.

    Raises:
        ValueError: it would.
    """
    case = data["case"]
    if not isinstance(case, str) or not case or ".." in case or any(sign in case for sign in "/\\\0"):
        raise ValueError(f"case has to be a file name without path separators or '..', got {case!r}.")
    return case

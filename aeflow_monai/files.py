"""Files: written whole or not at all, JSON, and where they lie."""

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

# What is being written: the machine, the process, and a number. It never has the name of what is whole.
_UNFINISHED = ".unfinished-{machine}-{process}-{number}"
_LEFT = re.compile(r"\.unfinished-(\w+)-(\d+)-")


def home(*parts: str) -> str:
    """Folder for what has no other place: $AEFLOW_HOME, or ~/.aeflow_monai.

    Args:
        parts: names of folders below it.

    Returns:
        The path. Nothing is created.
    """
    root = os.environ.get("AEFLOW_HOME") or Path.home() / ".aeflow_monai"
    return str(user_path(Path(root, *parts)).absolute())


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a shell takes it: `~` is the home folder, and `~name` that of a user, or a plain name if there is none.

    Example:
        >>> user_path("~/data") == Path.home() / "data", user_path("~nobody's")
        (True, PosixPath("~nobody's"))
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


def unfinished_path(path: str | Path) -> Path:
    """A path beside another one, with the same suffix, for what becomes that when it is whole; see `sweep`."""
    path = Path(path)
    name = _UNFINISHED.format(machine=_machine(), process=os.getpid(), number=uuid.uuid4().hex[:8])
    return path.with_name(name + "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside its place, and move it there when it is whole.

    Whoever reads an earlier file of this name meanwhile finds it whole. If the block raises, nothing is left; of a
    process that is killed, `sweep` takes away what is left.

    Args:
        path: of the file; missing folders are made.

    Yields:
        The path to write to, with the same suffix.

    Raises:
        OSError: as the block raises it, of a full disk for example; it names the file.

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
    # in the same folder, since a file is replaced in one step only within its file system
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
    """Write files that belong together beside their place, and move all of them there when they are whole.

    If the block raises, none of them is there, and earlier ones of these names stay.

    Args:
        folder: of the files; made if it is missing.

    Yields:
        The folder to write to, in which the files have their names.

    Raises:
        OSError: as the block raises it, of a full disk for example; it names the file in its place.

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
    """Write a folder beside its place, and move it there when it is whole. If the block raises, nothing is left.

    What killed processes have left of other folders beside it is taken away.

    Args:
        path: of the folder, which may exist if it is empty; missing parents are made.

    Yields:
        The folder to write to.

    Raises:
        OSError: meanwhile, something else has come to lie there.

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
        shutil.rmtree(unfinished, ignore_errors=True)  # gone already, unless something failed


def sweep(folder: str | Path) -> list[str]:
    """Take away what processes of this machine were writing in a folder when they were killed.

    Args:
        folder: that is looked into, not deeper; it need not be there.

    Returns:
        Names of what is gone.
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
    """A number for this machine, whose process numbers mean nothing on others."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file in one step.

    Args:
        path: of the file, replaced if it exists; missing folders are made.
        content: what JSON can hold; keys keep their order.

    Raises:
        ValueError: a number is NaN or infinite, which JSON has no word for.
        TypeError: JSON cannot hold the content.

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
    """Content of a JSON file that need not be there; an empty dictionary if it is not.

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
    """The case, which becomes a part of file names and must not lead out of the output folder.

    Raises:
        ValueError: it would.
    """
    case = data["case"]
    if not isinstance(case, str) or not case or ".." in case or any(sign in case for sign in "/\\\0"):
        raise ValueError(f"case has to be a file name without path separators or '..', got {case!r}.")
    return case

"""Files: written whole or not at all, tables that grow by a row, JSON, hashes, compression, and where they lie."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    from isal import igzip as gzip  # as small as zlib's level 1 in a fraction of the time, see benchmarks/writing.py
except ImportError:  # no wheel for this machine
    import gzip

__all__ = [
    "Table",
    "case_file_name",
    "gzip",
    "home",
    "new_folder",
    "read_json",
    "replacing",
    "sha256_of",
    "write_json",
]


def home(*parts: str) -> str:
    """Folder for what has no other place: $AEFLOW_HOME, or ~/.aeflow_monai.

    Args:
        parts: names of folders below it.

    Returns:
        The path. Nothing is created.
    """
    root = os.environ.get("AEFLOW_HOME") or Path.home() / ".aeflow_monai"
    return str(Path(root, *parts).absolute())


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside its place, and move it there when it is whole.

    Whoever reads an earlier file of this name meanwhile finds it whole. If the block raises, nothing is left.

    Args:
        path: of the file; missing folders are made.

    Yields:
        The path to write to, with the same suffix.

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
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Write a folder beside its place, and move it there when it is whole. If the block raises, nothing is left.

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
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # gone already, unless something failed


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
    """Content of a JSON file that need not be there; an empty dictionary if it is not."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class Table:
    """A CSV file that grows by a row per case, so that a failure loses nothing that was computed before.

    Args:
        path: of the file, replaced if it exists; missing folders are made.
        columns: names of the columns, in their order.

    Raises:
        ValueError: there are no columns, or one is named twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Table(f"{folder}/scores.csv", ["case", "anomaly_score"])
        ...     table.append({"case": "sub-01", "anomaly_score": 0.1 + 0.2})
        ...     print(table.path.read_text())
        case,anomaly_score
        sub-01,0.30000000000000004
        <BLANKLINE>
    """

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        self.path = Path(path)
        self.columns = tuple(columns)
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns have to be one or more different names, got {list(self.columns)}.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write_line("w", self.columns)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and close the file.

        Args:
            row: a value for each column; numbers may be scalars of Python, NumPy or torch, and keep all their digits.

        Raises:
            ValueError: a column is missing or unknown.
        """
        missing = [column for column in self.columns if column not in row]
        unknown = [column for column in row if column not in self.columns]
        if missing or unknown:
            raise ValueError(
                f"a row of {self.path.name} has the columns {list(self.columns)}: missing {missing}, unknown {unknown}."
            )
        self._write_line("a", [row[column] for column in self.columns])

    def _write_line(self, mode: str, values: Sequence[Any]) -> None:
        cells = (value.item() if hasattr(value, "item") else value for value in values)
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(
                repr(cell) if isinstance(cell, float) else cell for cell in cells
            )


def sha256_of(file: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(file).open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def case_file_name(data: Mapping[Hashable, Any]) -> str:
    """The case, which becomes a part of file names and must not lead out of the output folder.

    Raises:
        ValueError: it would.
    """
    case = data["case"]
    if not isinstance(case, str) or not case or ".." in case or any(sign in case for sign in "/\\\0"):
        raise ValueError(f"case has to be a file name without path separators or '..', got {case!r}.")
    return case

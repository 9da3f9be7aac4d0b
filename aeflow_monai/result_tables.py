"""Tables of results: writing CSV files row by row, and reading them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from aeflow_monai.files import replacing
from aeflow_monai.result_files import unfinished_name

__all__ = ["DamagedTable", "Table", "iter_rows", "rows_of", "spreadsheet_safe", "write_table"]

# Start of a formula, also in full width, after any apostrophes, so that an added one can be removed again.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uFF1D\uFF0B\uFF0D\uFF20]")


class DamagedTable(ValueError):
    """A table of results is truncated, or is not a table."""


class Table:
    """A CSV file that is written row by row, so that a failure loses no earlier results.

    Until `finish` it is named `<name>.unfinished.csv`.

    Args:
        path: path of the file, replaced when the table is finished; missing folders are created.
        columns: names of the columns, in order.

    Raises:
        ValueError: there are no columns, or one is repeated.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Table(f"{folder}/scores.csv", ["case", "anomaly_score"])
        ...     table.append({"case": "sub-01", "anomaly_score": 0.1 + 0.2})
        ...     print([file.name for file in Path(folder).iterdir()])
        ...     table.finish()
        ...     print(table.path.read_text())
        ['scores.unfinished.csv']
        case,anomaly_score
        sub-01,0.30000000000000004
        <BLANKLINE>
    """

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        self.path = Path(path)
        self.unfinished = self.path.with_name(unfinished_name(self.path.name))
        self.columns = tuple(columns)
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns have to be one or more different names, got {list(self.columns)}.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write_line("w", self.columns)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and close the file.

        Args:
            row: a value for each column; numbers may be scalars of Python, NumPy or torch, and keep all digits.

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

    def finish(self) -> None:
        """Rename the table: it is complete."""
        self.unfinished.replace(self.path)

    def _write_line(self, mode: str, values: Sequence[Any]) -> None:
        try:
            # escapes bytes of a file name that are not UTF-8
            with self.unfinished.open(mode, newline="", encoding="utf-8", errors="backslashreplace") as file:
                _write_rows(file, [values])
        except OSError as error:  # of a full disk, for example, which names no file
            raise OSError(error.errno, error.strerror, str(self.unfinished)) from error


def _write_rows(file: IO[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows of cells to an open table; numbers keep all digits, and text is `spreadsheet_safe`."""
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        cells = (value.item() if hasattr(value, "item") else value for value in row)
        writer.writerow(repr(cell) if isinstance(cell, float) else spreadsheet_safe(cell) for cell in cells)


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table all of whose rows are known, beside its place until it is whole; absent cells are empty.

    Args:
        path: of the file, which is replaced.
        columns: names of the columns, in their order.
        rows: from column to value; others than the columns are left out.
    """
    with replacing(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        _write_rows(file, [columns])
        _write_rows(file, ([row.get(column, "") for column in columns] for row in rows))


def spreadsheet_safe(cell: Any) -> Any:
    """Return a cell that spreadsheets do not take for a formula, whatever a file or case is called.

    Args:
        cell: a value of any type; numbers are not changed.

    Returns:
        The cell; text that starts like a formula gets an apostrophe in front, which spreadsheets hide.

    Example:
        >>> spreadsheet_safe("=1+1"), spreadsheet_safe("sub-01"), spreadsheet_safe(-1.5)
        ("'=1+1", 'sub-01', -1.5)
    """
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def rows_of(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a table that `Table` wrote, by column; none if it does not exist.

    The apostrophes of `spreadsheet_safe` are removed.

    Raises:
        DamagedTable: see `iter_rows`.

    Example:
        >>> import tempfile
        >>> table = Table(f"{tempfile.mkdtemp()}/scores.csv", ["case"])
        >>> table.append({"case": "=1+1"})
        >>> table.finish()
        >>> rows_of(table.path), rows_of(table.path.with_name("lesions.csv"))
        ([{'case': '=1+1'}], [])
    """
    return list(iter_rows(path)) if Path(path).is_file() else []


def iter_rows(path: str | Path) -> Iterator[dict[str, str]]:
    """Yield the rows of an existing table one by one, see `rows_of`.

    Raises:
        DamagedTable: it is truncated, as by an interrupted copy, or a row has more or fewer cells than columns.
    """
    with Path(path).open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet may have added a byte order mark
        table = csv.reader(_whole_lines(file), strict=True)
        try:
            columns = next(table, None)
            if columns is None:
                raise ValueError("it is empty")
            for row in filter(None, table):
                if len(row) != len(columns):
                    raise ValueError(f"line {table.line_num} has {len(row)} of {len(columns)} cells")
                yield dict(zip(columns, map(_plain, row), strict=True))
        except (ValueError, csv.Error) as error:
            raise DamagedTable(f"{path} is damaged: {error}. Restore it, or run again.") from error


def _whole_lines(file: Iterable[str]) -> Iterator[str]:
    """Yield lines of a table, each of which has to be complete."""
    for number, line in enumerate(file, start=1):
        if not line.endswith(("\n", "\r")):
            raise ValueError(f"line {number} was cut")
        yield line


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell

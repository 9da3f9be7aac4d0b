"""Read the rows of hand-written CSV tables; a stray quote is an error rather than hiding the rows after it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

__all__ = ["table_columns", "table_rows"]


def table_columns(name: str, table: csv.DictReader[str]) -> list[str]:
    """Return the column names from the first line of a table.

    Args:
        name: name of the table for messages.
        table: reader made with `strict=True`; otherwise an unclosed quote hides all rows after it.

    Raises:
        ValueError: the header cannot be read, or spans several lines.
    """
    with _read(name, table):
        columns = list(table.fieldnames or ())
        _require_lines(name, table, columns)
    return columns


def table_rows(name: str, table: csv.DictReader[str]) -> Iterator[tuple[int, dict[str | Any, str | Any]]]:
    """Yield the line number and the cells of each row.

    Args:
        name: see `table_columns`.
        table: see `table_columns`.

    Raises:
        ValueError: a row cannot be read, or a cell in quotes spans several lines.

    Example:
        >>> rows = csv.DictReader(['path,note', 'a.png,"a, b"'], strict=True)
        >>> list(table_rows("list.csv", rows))
        [(2, {'path': 'a.png', 'note': 'a, b'})]
    """
    with _read(name, table):
        for row in table:
            more = (cells if isinstance(cells, list) else [cells] for cells in row.values())
            _require_lines(name, table, chain.from_iterable(more))
            yield table.line_num, row


def _require_lines(name: str, table: csv.DictReader[str], cells: Iterable[str | None]) -> None:
    if any("\n" in cell or "\r" in cell for cell in cells if cell):
        raise ValueError(
            f"{name}, up to line {table.reader.line_num}: a cell in quotes spans several lines, which hides them if a "
            "quote stands there by mistake. Take out the quote, or the break of the line."
        )


@contextmanager
def _read(name: str, table: csv.DictReader[str]) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise ValueError(
            f"{name}, up to line {table.reader.line_num}: the table cannot be read, {error}. A quote that is opened "
            "has to be closed, or doubled where it is part of a cell."
        ) from error

"""Rows of tables that people write: none of them hides others behind a stray quote."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

__all__ = ["table_rows"]


def table_rows(name: str, table: csv.DictReader[str]) -> Iterator[tuple[int, dict[str | Any, str | Any]]]:
    """Number of the line and cells of each row.

    Args:
        name: of the table, for messages.
        table: was made with `strict=True`; otherwise a quote that is not closed hides all rows behind it.

    Raises:
        ValueError: a row cannot be read, or a cell in quotes spans several lines.

    Example:
        >>> rows = csv.DictReader(['path,note', 'a.png,"a, b"'], strict=True)
        >>> list(table_rows("list.csv", rows))
        [(2, {'path': 'a.png', 'note': 'a, b'})]
    """
    try:
        for row in table:
            cells = (cell for cells in row.values() for cell in (cells if isinstance(cells, list) else [cells]))
            if any("\n" in cell or "\r" in cell for cell in cells if cell):
                raise ValueError(
                    f"{name}, up to line {table.line_num}: a cell in quotes spans several lines, which hides them if a "
                    "quote stands there by mistake. Take out the quote, or the break of the line."
                )
            yield table.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"{name}, up to line {table.reader.line_num}: the table cannot be read, {error}. Close each quote that is "
            "opened, or double it where it is part of a cell."
        ) from error

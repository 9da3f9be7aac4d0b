"""What a user sees of a run: plain lines in a file or pipe, bars in a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import methodcaller
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from aeflow_monai.progress import listening

__all__ = ["Terminal"]

_EVERY = 10.0  # seconds between lines about one thing, where there are no bars


class Terminal:
    """The terminal of a run: results go to stdout, all else to stderr.

    Args:
        quiet: leave out what is no result and no error.
        verbose: show the log and tracebacks too.
        as_json: print nothing to stdout but what `line` prints.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False, as_json: bool = False) -> None:
        self.quiet, self.verbose, self.json = quiet, verbose, as_json
        self.out = Console(file=sys.stdout, highlight=False, soft_wrap=True)  # also where prints go elsewhere
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)
        self.when_stopped: Callable[[], str] | None = None  # says what is kept, and how to go on
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Say what goes on."""
        if not self.quiet:
            self.err.print(escape(text))

    def detail(self, text: str) -> None:
        """Say what only --verbose shows."""
        if self.verbose:
            self.err.print(f"[dim]{escape(text)}[/]")

    def result(self, text: str = "") -> None:
        """Print a result."""
        if not self.json:
            self.out.print(escape(text))

    def table(self, columns: list[str], rows: list[list[Any]]) -> None:
        """Print results as a table."""
        if self.json:
            return
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(escape(str(value)) for value in row))
        self.out.print(table)

    def case(self, row: Mapping[str, Any]) -> None:
        """Print what came of a case as an object for other programs, with --json; empty cells are null."""
        self.line({name: None if cell == "" else cell for name, cell in row.items()})

    def line(self, content: Mapping[str, Any]) -> None:
        """Print an object for other programs, with --json; numbers may be tensors."""
        if self.json:
            self.out.file.write(json.dumps(content, default=methodcaller("item")) + "\n")
            self.out.file.flush()

    def error(self, text: str) -> None:
        """Say what went wrong."""
        self.err.print(f"[bold red]error:[/] {escape(text)}")

    def warn(self, text: str) -> None:
        """Say what is left out or doubtful."""
        if not self.quiet:
            self.err.print(f"[yellow]note:[/] {escape(text)}")

    def traceback(self) -> None:
        """Show the traceback of the error that is handled."""
        self.err.print_exception()

    def stopped(self) -> None:
        """Say that the run was interrupted, and how to go on."""
        self.err.print(f"Interrupted. {escape(self.when_stopped() if self.when_stopped else '')}")

    @contextmanager
    def progress(self) -> Iterator[None]:
        """While it is open, `advance` is shown: as bars in a terminal, else as a line now and then."""
        with listening(self):
            if self.quiet or not self.err.is_terminal:
                yield
                return
            columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            try:
                with Progress(
                    *columns, console=self.err, transient=True, redirect_stdout=False, redirect_stderr=False
                ) as self._bars:
                    yield
            finally:
                self._bars = None
                self._tasks.clear()

    def advance(self, what: str, n: int, total: int | None) -> None:
        """Show that n of the total of something are done.

        Args:
            what: in a word, such as "reading".
            n: done until now.
            total: of all; None if it is not known.
        """
        if self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=n, total=total)
            if total is not None and n >= total:
                self._bars.remove_task(self._tasks.pop(what))
            return
        now = time.monotonic()
        last = self._done.setdefault(what, now)
        if now - last > _EVERY:
            self._done[what] = now
            self.say(f"{what} {n}{f'/{total}' if total else ''}")

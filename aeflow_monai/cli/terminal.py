"""Output of a run for the user: plain lines in a file or pipe, progress bars in a terminal."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import methodcaller
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from aeflow_monai.cli.own_words import in_own_words
from aeflow_monai.cli.standard_streams import lasting
from aeflow_monai.printable import shown
from aeflow_monai.progress import listening

__all__ = ["Terminal"]

_EVERY = 10.0  # seconds between progress lines about one thing, without bars
_UNLIMITED = 10_000  # columns


class Terminal:
    """The terminal of a run: results go to stdout, everything else to stderr.

    Args:
        quiet: show only results and errors.
        verbose: also show the log and tracebacks.
        as_json: print only the objects of `line` and `case` to stdout.
        command: the command as typed, shown when a run is interrupted.
    """

    def __init__(
        self, quiet: bool = False, verbose: bool = False, as_json: bool = False, command: str = "aeflow"
    ) -> None:
        self.command = command
        self.quiet, self.verbose, self.json = quiet, verbose, as_json
        for stream in (sys.stdout, sys.stderr):  # their encoding may lack characters of names and numbers
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        # show file names unchanged, although rich would interpret :brain: or [red]
        console = partial(Console, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self.out = console(file=lasting(sys.stdout))  # also while prints are redirected
        if not self.out.is_terminal:
            self.out.width = _UNLIMITED
        self.err = console(file=lasting(sys.stderr))
        self.when_stopped: Callable[[], str] | None = None  # returns a message on what is kept and how to resume
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, tuple[float, int]] = {}  # by topic, time of the last line and progress
        self._lock = threading.Lock()  # planes of a volume are processed in several threads

    def say(self, text: str) -> None:
        """Show a status message."""
        if not self.quiet:
            self.err.print(_safe(text))

    def detail(self, text: str) -> None:
        """Show a message with --verbose only."""
        if self.verbose:
            self.err.print(_safe(text), style="dim")

    def result(self, text: str = "") -> None:
        """Print a result."""
        if not self.json:
            self.out.print(_safe(text))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print results as a table; in a file or pipe no cell is truncated or wrapped."""
        if self.json:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(_safe(str(cell)) for cell in row))
        self.out.print(table)

    def case(self, row: Mapping[str, Any]) -> None:
        """Print the result of a case as a JSON object, with --json; empty cells are null."""
        self.line({name: None if cell == "" else cell for name, cell in row.items()})

    def line(self, content: Mapping[str, Any]) -> None:
        """Print a JSON object, with --json; numbers may be tensors."""
        if self.json:
            self.out.file.write(json.dumps(content, default=methodcaller("item")) + "\n")
            self.out.file.flush()

    def error(self, text: str) -> None:
        """Show an error."""
        self.err.print(Text.assemble(("error:", "bold red"), f" {_safe(text)}"))

    def warn(self, text: str) -> None:
        """Show a warning."""
        if not self.quiet:
            self.err.print(Text.assemble(("note:", "yellow"), f" {_safe(text)}"))

    def traceback(self) -> None:
        """Show the traceback of the current error."""
        self.err.print_exception()

    def stopped(self) -> None:
        """Report that the run was interrupted, and how to resume it."""
        kept = self.when_stopped() if self.when_stopped else f"Begin again with:\n  {self.command}"
        self.err.print(_safe(f"Interrupted. {kept}"))

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show the progress of `advance` while open: as bars in a terminal, else as occasional lines."""
        with listening(self):
            if self.quiet or not self.err.is_terminal:
                yield
                return
            columns = (
                TextColumn("{task.description:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
                _RateColumn(),
                TimeRemainingColumn(),
            )
            try:
                with Progress(
                    *columns, console=self.err, transient=True, redirect_stdout=False, redirect_stderr=False
                ) as self._bars:
                    yield
            finally:
                self._bars = None
                self._tasks.clear()

    def advance(self, what: str, n: int, total: int | None) -> None:
        """Report progress; may be called from several threads.

        Args:
            what: topic in a word, such as "reading".
            n: number done so far.
            total: total number; None if unknown.
        """
        with self._lock:
            if self._bars is not None:
                self._move_bar(self._bars, what, n, total)
            else:
                self._tell(what, n, total)

    def _move_bar(self, bars: Progress, what: str, n: int, total: int | None) -> None:
        if what not in self._tasks:
            self._tasks[what] = bars.add_task(what, total=total)
        bars.update(self._tasks[what], completed=n, total=total)
        if total is not None and n >= total:
            bars.remove_task(self._tasks.pop(what))

    def _tell(self, what: str, n: int, total: int | None) -> None:
        now = time.monotonic()
        since, before = self._told.get(what, (now, 0))
        if n < before:  # a new round, for example the slices of another volume
            since = now
        if now - since > _EVERY:
            since = now
            self.say(f"{what} {n}{f'/{total}' if total else ''}")
        self._told[what] = since, n


class _RateColumn(ProgressColumn):
    """The number of items per second."""

    def render(self, task: Task) -> Text:
        """Return the rate, if known."""
        return Text("" if task.speed is None else f"{task.speed:.3g}/s", style="progress.data.speed")


def _safe(text: str) -> str:
    """Lines whose characters a terminal may print, with options as this command takes them."""
    return "\n".join(shown(line) for line in in_own_words(text).split("\n"))

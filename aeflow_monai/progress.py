"""Progress of a run, for a listener that shows it; without one nothing is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

__all__ = ["Listener", "advance", "case", "listening", "say", "tracked"]

_T = TypeVar("_T")


class Listener(Protocol):
    """Listener that shows the progress of a run; called from several threads."""

    def advance(self, what: str, n: int, total: int | None) -> None:
        """Show that n of a total are done; the total is None if unknown."""

    def say(self, text: str) -> None:
        """Show a line."""

    def case(self, row: Mapping[str, Any]) -> None:
        """Show the result of a case."""


_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Set the listener of the progress of runs, within this context."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def advance(what: str, n: int, total: int | None = None) -> None:
    """Report that n of a total are done.

    Args:
        what: what is done, in a word, such as "reading".
        n: number done so far.
        total: total number; None if unknown.
    """
    for listener in _listeners:
        listener.advance(what, n, total)


def say(text: str) -> None:
    """Report a line on the run."""
    for listener in _listeners:
        listener.say(text)


def case(row: Mapping[str, Any]) -> None:
    """Report the result of a case, as soon as it is known.

    Args:
        row: its `state`, scored or failed, and the cells of its table row, by column.
    """
    for listener in _listeners:
        listener.case(row)


def tracked(items: Iterable[_T], what: str) -> Iterator[_T]:
    """Yield items one by one, and report progress when the next one is requested.

    Args:
        items: the items; if they have a length, it is reported as the total.
        what: what is done with them, in a word.

    Example:
        >>> class Shown:
        ...     def advance(self, what, n, total):
        ...         print(what, n, total)
        >>> with listening(Shown()):
        ...     for case in tracked(["a", "b"], "reading"):
        ...         pass
        reading 0 2
        reading 1 2
        reading 2 2
    """
    total = len(items) if isinstance(items, Sized) else None
    done = 0
    advance(what, done, total)
    for item in items:
        yield item
        done += 1
        advance(what, done, total)

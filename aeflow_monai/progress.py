"""How far a run has come, for whoever shows it; without a listener nothing is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

__all__ = ["Listener", "advance", "case", "listening", "say", "tracked"]

_T = TypeVar("_T")


class Listener(Protocol):
    """Shows how far a run has come; is called from several threads."""

    def advance(self, what: str, n: int, total: int | None) -> None:
        """Show that n of a total are done; the total is None if it is not known."""

    def say(self, text: str) -> None:
        """Show a line."""

    def case(self, row: Mapping[str, Any]) -> None:
        """Take what came of a case."""


_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let someone show how far runs have come, while this is open."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def advance(what: str, n: int, total: int | None = None) -> None:
    """Tell that n of a total are done.

    Args:
        what: is done, in a word, such as "reading".
        n: done until now.
        total: of all; None if it is not known.
    """
    for listener in _listeners:
        listener.advance(what, n, total)


def say(text: str) -> None:
    """Tell a line about the run."""
    for listener in _listeners:
        listener.say(text)


def case(row: Mapping[str, Any]) -> None:
    """Tell what came of a case, as soon as it is known.

    Args:
        row: its `state`, scored or failed, and the cells of its line in a table, by the names of the columns.
    """
    for listener in _listeners:
        listener.case(row)


def tracked(items: Iterable[_T], what: str) -> Iterator[_T]:
    """Items one by one, each told when the next is asked for.

    Args:
        items: whose number is told if they have one.
        what: is done with them, in a word.

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

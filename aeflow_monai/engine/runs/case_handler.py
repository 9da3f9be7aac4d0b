"""Base class of handlers that process a run case by case."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ignite.engine import Engine, Events

__all__ = ["CaseHandler"]


class CaseHandler(ABC):
    """An Ignite handler with a start, a call for each case, and a finish."""

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    @abstractmethod
    def start(self, engine: Engine) -> None:
        """Reset the collected cases."""

    @abstractmethod
    def __call__(self, engine: Engine) -> None:
        """Process the cases of this batch."""

    @abstractmethod
    def finish(self, engine: Engine) -> None:
        """Write the results of the run."""

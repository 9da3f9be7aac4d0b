"""What follows a run case by case, from its start to its end."""

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
        """Forget the cases of an earlier run."""

    @abstractmethod
    def __call__(self, engine: Engine) -> None:
        """Take the cases of this batch."""

    @abstractmethod
    def finish(self, engine: Engine) -> None:
        """Write what came of the run."""

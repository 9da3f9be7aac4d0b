"""Base class of Ignite handlers that collect cases over a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from ignite.engine import Engine

from aeflow_monai.engine.runs.case_handler import CaseHandler

__all__ = ["CaseCollector", "cases_of_batch"]


class CaseCollector(CaseHandler):
    """Collect data of each case of a run, and write a file at the end."""

    def __call__(self, engine: Engine) -> None:
        """Collect the cases of this batch."""
        for source, scored in cases_of_batch(engine):
            self.take(source, scored)

    @abstractmethod
    def take(self, source: Mapping[str, Any], scored: Mapping[str, Any]) -> None:
        """Collect one case, from its input and output dictionaries."""


def cases_of_batch(engine: Engine) -> Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Iterate over input and output dictionaries of the cases in the current, decollated batch."""
    return zip(engine.state.batch, engine.state.output, strict=True)

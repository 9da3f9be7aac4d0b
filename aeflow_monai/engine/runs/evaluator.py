"""MONAI's evaluator, continuing after a failed case."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from torch.utils.data import DataLoader

from aeflow_monai import progress
from aeflow_monai.data.guarded_dataset import recorded_failure
from aeflow_monai.errors import FailureLog

__all__ = ["GuardedEvaluator"]


class GuardedEvaluator(SupervisedEvaluator):  # type: ignore[misc]
    """Variant of MONAI's evaluator that continues after a failed case, and ends with an error if there was one.

    Errors are caught in a case's loading (by a `GuardedDataset`), the network and the postprocessing. Handlers see a
    failed case as an iteration with an empty batch and an empty output. When all handlers are done, `CaseFailures` is
    raised, so that the process ends with an error. Errors that are not of a case (a checkpoint that does not fit, an
    error in a handler) end the run at once.

    Args:
        failures: log of the failures.
        options: arguments of `monai.engines.SupervisedEvaluator`; `val_data_loader` has to have a batch size of 1.

    Raises:
        ValueError: the loader has another batch size, so that a failed case would affect others.
    """

    def __init__(self, *, failures: FailureLog, **options: Any) -> None:
        loader = options.get("val_data_loader")
        if isinstance(loader, DataLoader) and loader.batch_size != 1:
            raise ValueError(
                f"Expected a data loader with a batch size of 1, so that a case that fails does so alone; got "
                f"{loader.batch_size}. Set its batch_size to 1; the slices of a volume go through the network together "
                "anyway."
            )
        self.failures = failures
        self.n_cases = 0
        super().__init__(**options)
        self.add_event_handler(Events.GET_BATCH_STARTED, _forget)
        self.add_event_handler(Events.ITERATION_COMPLETED, _tell)

    def run(self, global_epoch: int = 1) -> None:
        """Evaluate all cases.

        Args:
            global_epoch: see `monai.engines.Evaluator.run`.

        Raises:
            CaseFailures: at the end, if a case failed.
        """
        self.failures.start()
        self.n_cases = 0
        gc.freeze()  # objects from before the first case need not be traversed after each
        try:
            super().run(global_epoch)
        finally:
            gc.unfreeze()
        self.failures.raise_if_any(self.n_cases)

    def _iteration(self, engine: GuardedEvaluator, batchdata: Mapping[str, Any]) -> Any:
        self.n_cases += 1
        if failure := recorded_failure(batchdata):
            self.failures.add(failure)
        else:
            with self.failures.catching(batchdata, "score"):
                return super()._iteration(engine, batchdata)
        engine.state.batch = []
        return []


def _tell(engine: GuardedEvaluator) -> None:
    progress.advance("cases", engine.n_cases, engine.state.epoch_length)


def _forget(engine: GuardedEvaluator) -> None:
    """Release the last case before the next is read: volumes and their maps are large."""
    engine.state.batch = engine.state.output = None
    gc.collect()  # reference cycles, which Python would collect only some cases later
    if engine.n_cases == 1:
        gc.freeze()  # modules that readers import with the first case; traversing them costs more than a 2D image

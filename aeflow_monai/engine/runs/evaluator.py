"""MONAI's evaluator, which goes on after a case that fails."""

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
    """MONAI's evaluator, which goes on after a case that fails, and ends with an error if one did.

    Guarded are a case's loading (by a `GuardedDataset`), the network and the postprocessing. For handlers a case that
    failed is an iteration with an empty batch and an empty output. When all handlers are done, `CaseFailures` is
    raised, so that the process does not end as if all were well. What is no case's fault (a checkpoint that does not
    fit, a handler's error) ends the run at once.

    Args:
        failures: where failures are noted.
        options: of `monai.engines.SupervisedEvaluator`; `val_data_loader` has to have a batch size of 1.

    Raises:
        ValueError: the loader has another batch size, so that one case would take others with it.
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
        gc.freeze()  # what is there before the first case need not be looked through after each
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
    """Let go of the last case before the next is read: volumes and their maps are large."""
    engine.state.batch = engine.state.output = None
    gc.collect()  # they are in circles of references, which Python would look for some cases later
    if engine.n_cases == 1:
        gc.freeze()  # modules that readers load with the first case; looking through them costs more than a 2D image

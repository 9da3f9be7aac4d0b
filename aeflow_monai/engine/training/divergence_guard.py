"""Stopping a training whose loss diverges."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator

__all__ = ["DivergenceGuard"]


class DivergenceGuard:
    """Stop a diverging training with an error: at once if its loss is not finite, else before a model is written.

    A training with finite loss has diverged if its final validation loss is higher than that of the network before the
    training.

    Args:
        validator: evaluator of the training whose key metric is the validation loss; if None, only the training loss is
            checked to be finite.
    """

    def __init__(self, validator: SupervisedEvaluator | None = None) -> None:
        self.validator = validator
        self.before = math.inf

    def state_dict(self) -> dict[str, float]:
        """Return the state for a resumed training."""
        return {"before": self.before}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Load the state of an interrupted training."""
        self.before = float(state["before"])

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before the handler that writes the model."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        if self.validator is not None:
            engine.add_event_handler(Events.STARTED, self.start, self.validator)
            engine.add_event_handler(Events.COMPLETED, self.finish, self.validator)

    def start(self, engine: Engine, validator: SupervisedEvaluator) -> None:
        """Measure the validation loss before the training, without changing the state of its random generators."""
        self.before = _validation_loss(engine, validator)

    def finish(self, engine: Engine, validator: SupervisedEvaluator) -> None:
        """Compare the validation loss with that before the training.

        Raises:
            ValueError: it is higher, because the training diverged, or because its images are too few.
        """
        # a training resumed after its last epoch has not validated
        metrics, name = validator.state.metrics, validator.state.key_metric_name
        after = float(metrics[name] if name in metrics else _validation_loss(engine, validator))
        last = engine.state.output  # of the last batch; a training that is resumed after its last epoch has none
        trained = float(last["loss"].detach()) if isinstance(last, Mapping) and "loss" in last else math.inf
        if after > self.before > trained:
            raise ValueError(
                f"The network fits its training images and no others: the loss of held-out normals rose from "
                f"{self.before:.4g}, before the first epoch, to {after:.4g}, while that of the training fell to "
                f"{trained:.4g}. Give more normal images, or fewer epochs. No model is written, an earlier one is "
                "untouched."
            )
        if not after <= self.before:
            raise ValueError(
                f"The training diverged: its validation loss went from {self.before:.4g}, before the first epoch, to "
                f"{after:.4g}. Lower learning_rate, or network_def#network#clamp. No model is written, an earlier one "
                "is untouched."
            )

    def __call__(self, engine: Engine) -> None:
        """Check the last loss.

        Raises:
            ValueError: it is not finite.
        """
        loss = float(engine.state.output["loss"].detach())
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is {loss} in epoch {engine.state.epoch}, iteration {engine.state.iteration}: the training "
                "diverged. Lower learning_rate, or network_def#network#clamp; the last checkpoint is kept, an earlier "
                "model is untouched."
            )


@torch.no_grad()
def _validation_loss(engine: Engine, validator: SupervisedEvaluator) -> float:
    network, losses = validator.network, []
    network.eval()
    with torch.random.fork_rng():
        for batch in validator.data_loader:
            image, _, args, options = engine.prepare_batch(batch, engine.state.device)
            losses.append(float(engine.loss_function(network(image, *args, **options), image)))
    return sum(losses) / len(losses)

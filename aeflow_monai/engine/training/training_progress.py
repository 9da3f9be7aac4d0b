"""Progress of a training."""

from __future__ import annotations

import time

from ignite.engine import Engine, Events

from aeflow_monai import progress

__all__ = ["TrainingProgress"]


class TrainingProgress:
    """Report the progress of a training: each batch, and a line for each epoch; see `aeflow_monai.progress`.

    It has to be attached after the handler that validates.

    Args:
        validator: engine whose metrics are added to the line.
    """

    def __init__(self, validator: Engine) -> None:
        self.validator = validator

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)

    def start(self, engine: Engine) -> None:
        """Record the start time and the first epoch."""
        self.began, self.first = time.monotonic(), engine.state.epoch

    def __call__(self, engine: Engine) -> None:
        """Report a batch."""
        progress.advance("training", engine.state.iteration, engine.state.max_epochs * engine.state.epoch_length)

    def end_epoch(self, engine: Engine) -> None:
        """Report an epoch."""
        state = engine.state
        per_epoch = (time.monotonic() - self.began) / max(1, state.epoch - self.first)
        left = per_epoch * (state.max_epochs - state.epoch)
        losses = {
            "loss": state.metrics.get("train_loss"),
            "held-out loss": self.validator.state.metrics.get("val_loss"),
        }
        told = ", ".join(f"{name} {value:.4g}" for name, value in losses.items() if value is not None)
        minutes, seconds = divmod(round(left), 60)
        progress.say(f"epoch {state.epoch}/{state.max_epochs}: {told}, {minutes}:{seconds:02d} left")

"""Ignite handlers of the training: pictures on the way, the calibrated model at its end; and what demands one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.utils.data import default_collate
from torch.utils.tensorboard import SummaryWriter

from aeflow_monai.calibration import calibrate, save_calibrated
from aeflow_monai.scoring import AnomalyScorer
from aeflow_monai.slicing import places_of
from aeflow_monai.thresholds import require_specificity

__all__ = [
    "CalibratedModelSaver",
    "DivergenceGuard",
    "PictureLogger",
    "RequireCalibration",
]


class CalibratedModelSaver:
    """Calibrate the trained network and save it, when the training is completed.

    A training that ends in an error leaves an earlier model at the same place untouched.

    Args:
        scorer: the network that was trained.
        batches: held-out normals, see `calibrate`.
        path: of the checkpoint: a dictionary with the state dict under "model".
        specificity: see `calibrate`.
        fitted: normals of the training, see `calibrate`.

    Raises:
        ValueError: a specificity out of its range; now, not when the training is over.
    """

    def __init__(
        self,
        scorer: AnomalyScorer,
        batches: Iterable[Mapping[str, Any]],
        path: str | Path,
        specificity: float = 0.95,
        fitted: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        require_specificity(specificity)
        self.scorer = scorer
        self.batches = batches
        self.path = Path(path)
        self.specificity = specificity
        self.fitted = fitted

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Calibrate and save."""
        calibrate(self.scorer, self.batches, self.specificity, fitted=self.fitted)
        save_calibrated(self.scorer, self.path)


class DivergenceGuard:
    """End a training whose loss is not finite with an error, at once: it would not recover."""

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Look at the last loss.

        Raises:
            ValueError: it is not finite.
        """
        loss = float(engine.state.output["loss"].detach())
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is {loss} in epoch {engine.state.epoch}, iteration {engine.state.iteration}: the training "
                "diverged. Lower learning_rate or clamp; the last checkpoint is kept, an earlier model is untouched."
            )


class PictureLogger:
    """Write rows of image, reconstruction and anomaly map to TensorBoard after each epoch.

    During training the map is not calibrated yet, so it is standardised over the pictures that are shown together;
    the grey scale runs from 0 (the mean) to 6 standard deviations.

    Args:
        scorer: the network.
        dataset: items with "image" (C, H, W); shown are some, evenly spread.
        log_dir: TensorBoard's folder.
        n_rows: number of images.
        every: epochs between pictures; the last epoch is always shown.
    """

    def __init__(
        self,
        scorer: AnomalyScorer,
        dataset: Sequence[Mapping[str, Any]],
        log_dir: str | Path,
        n_rows: int = 4,
        every: int = 1,
    ) -> None:
        self.scorer = scorer
        self.dataset = dataset
        self.log_dir = str(log_dir)
        self.n_rows = n_rows
        self.every = every

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda: self.writer.close())

    def start(self, engine: Engine) -> None:
        """Open TensorBoard's file."""
        self.writer = SummaryWriter(self.log_dir)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Write the pictures of this epoch."""
        epoch = engine.state.epoch
        if epoch % self.every and epoch != engine.state.max_epochs:
            return
        # evenly spread, away from the ends: neighbours would show the same, first and last slices little
        n_rows = min(self.n_rows, len(self.dataset))
        chosen = [(2 * row + 1) * len(self.dataset) // (2 * n_rows) for row in range(n_rows)]
        device = self.scorer.term_mean.device
        batch = default_collate([self.dataset[index] for index in chosen])
        image = batch["image"].to(device)
        was_training = self.scorer.training
        self.scorer.eval()
        maps = self.scorer.maps(image, places_of(batch))
        self.scorer.train(was_training)
        anomaly = maps["anomaly_map"]
        anomaly = ((anomaly - anomaly.mean()) / anomaly.std().clamp_min(1e-6) / 6).clamp(0, 1)
        shown = [image.mean(1, keepdim=True), maps["reconstruction"].mean(1, keepdim=True), anomaly]
        row = torch.cat([torch.cat(list(picture), dim=-2) for picture in shown], dim=-1)
        self.writer.add_image("image | reconstruction | anomaly map", row.cpu(), epoch)


class RequireCalibration:
    """Refuse to score with a network that is not calibrated; has to stand behind the loader of the checkpoint.

    Args:
        scorer: the network.
    """

    def __init__(self, scorer: AnomalyScorer) -> None:
        self.scorer = scorer

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Look at the thresholds.

        Raises:
            ValueError: they were never fitted.
        """
        if not self.scorer.is_calibrated:
            raise ValueError(
                "The checkpoint is not calibrated, so it comes from the middle of a training. Finish the training "
                "(--resume <this checkpoint>), or give the model.pt that it ends with."
            )

"""Reconstructions during a training, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.utils.data import default_collate
from torch.utils.tensorboard import SummaryWriter

from aeflow_monai.engine.inference.detector import Detector, places_of

__all__ = ["PictureLogger"]


class PictureLogger:
    """Write rows of image, reconstruction and anomaly map to TensorBoard after each epoch.

    During a training the map is not calibrated yet, so it is standardised over the images that are shown together; the
    grey scale runs from 0 (the mean) to 6 standard deviations.

    Args:
        detector: the detector that is trained.
        dataset: items with "image" (C, H, W), of which an evenly spaced selection is shown.
        log_dir: folder of TensorBoard.
        n_rows: number of images.
        every: epochs between pictures; the last epoch is always shown.
    """

    def __init__(
        self,
        detector: Detector,
        dataset: Sequence[Mapping[str, Any]],
        log_dir: str | Path,
        n_rows: int = 4,
        every: int = 1,
    ) -> None:
        self.detector = detector
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
        """Open the TensorBoard file."""
        self.writer = SummaryWriter(self.log_dir)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Write the pictures of this epoch."""
        epoch = engine.state.epoch
        if epoch % self.every and epoch != engine.state.max_epochs:
            return
        # evenly spaced, not at the ends: neighbouring slices look alike, and the first and last show little
        n_rows = min(self.n_rows, len(self.dataset))
        chosen = [(2 * row + 1) * len(self.dataset) // (2 * n_rows) for row in range(n_rows)]
        batch = default_collate([self.dataset[index] for index in chosen])
        image = batch["image"].to(self.detector.device)
        was_training = self.detector.training
        self.detector.eval()
        maps = self.detector.maps(image, places_of(batch))
        self.detector.train(was_training)
        anomaly = maps["anomaly_map"]
        anomaly = ((anomaly - anomaly.mean()) / anomaly.std().clamp_min(1e-6) / 6).clamp(0, 1)
        shown = [image.mean(1, keepdim=True), maps["reconstruction"].mean(1, keepdim=True), anomaly]
        row = torch.cat([torch.cat(list(picture), dim=-2) for picture in shown], dim=-1)
        self.writer.add_image("image | reconstruction | anomaly map", row.cpu(), epoch)

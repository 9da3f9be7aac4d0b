"""Ignite handlers of the bundle: pictures while training, the calibrated model at its end, scores and report."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from aeflow_monai.calibration import calibrate
from aeflow_monai.metrics import detection_report, format_report
from aeflow_monai.scoring import AnomalyScorer
from aeflow_monai.writers import ScoreTable, write_json

__all__ = [
    "CalibratedModelSaver",
    "DetectionReport",
    "DivergenceGuard",
    "PictureLogger",
    "RequireCalibration",
    "ScoreWriter",
]

_logger = logging.getLogger(__name__)


class CalibratedModelSaver:
    """Calibrate the trained network and save it, when the training is completed.

    A training that ends in an error leaves an earlier model at the same place untouched.

    Args:
        scorer: the network that was trained.
        batches: held-out normals, see `calibrate`.
        path: of the checkpoint: a dictionary with the state dict under "model".
        specificity: see `calibrate`.
    """

    def __init__(
        self,
        scorer: AnomalyScorer,
        batches: Iterable[Mapping[str, Any]],
        path: str | Path,
        specificity: float = 0.95,
    ) -> None:
        self.scorer = scorer
        self.batches = batches
        self.path = Path(path)
        self.specificity = specificity

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Calibrate and save."""
        calibrate(self.scorer, self.batches, self.specificity)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # beside its place first: whoever reads the model meanwhile finds the old one whole
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        torch.save({"model": self.scorer.state_dict()}, unfinished)
        unfinished.replace(self.path)
        engine.logger.info(
            f"Calibrated on held-out normals: case threshold {float(self.scorer.case_threshold):.3f}, slice threshold "
            f"{float(self.scorer.slice_threshold):.3f}, map threshold {float(self.scorer.map_threshold):.3f}. "
            f"Saved {self.path}."
        )


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
        image = torch.stack([self.dataset[index]["image"] for index in chosen]).to(device)
        was_training = self.scorer.training
        self.scorer.eval()
        maps = self.scorer.maps(image)
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
        if not math.isfinite(float(self.scorer.case_threshold)):
            raise ValueError(
                "The checkpoint is not calibrated, so it comes from the middle of a training. Finish the training "
                "(--resume <this checkpoint>), or give the model.pt that it ends with."
            )


class ScoreWriter:
    """Append a line to scores.csv for each case, as soon as it is scored.

    Columns: case, file, label (if known), score, prediction, most anomalous slice (along the first plane of the slicing
    policy, counted from 1 in the network's orientation: axial from inferior to superior, as on the overlay).

    Args:
        path: of the table; replaced if it exists.
        labelled: whether the data has labels.
    """

    def __init__(self, path: str | Path, labelled: bool = False) -> None:
        self.path = Path(path)
        self.labelled = labelled

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Begin the table."""
        label = ["label"] if self.labelled else []
        self.table = ScoreTable(self.path, ["case", "file", *label, "score", "prediction", "most_anomalous_slice"])

    def __call__(self, engine: Engine) -> None:
        """Write the cases of this batch."""
        for source, scored in _cases(engine):
            row = {
                "case": source["case"],
                "file": source["image"].meta["filename_or_obj"],
                "score": scored["anomaly_score"],
                "prediction": scored["prediction"],
                "most_anomalous_slice": int(next(iter(scored["slice_scores"].values())).nan_to_num(-math.inf).argmax())
                + 1,
            }
            if self.labelled:
                row["label"] = int(source["label"])
            self.table.append(row)


class DetectionReport:
    """Collect the scores of labelled cases; write metrics.json at the end and print the report.

    Args:
        path: of metrics.json.
        scorer: holds the stored threshold.
        n_bootstrap: resamples for the intervals.
        seed: of the bootstrap; written into the report.
    """

    def __init__(self, path: str | Path, scorer: AnomalyScorer, n_bootstrap: int = 1000, seed: int = 0) -> None:
        self.path = Path(path)
        self.scorer = scorer
        self.n_bootstrap = n_bootstrap
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Forget the cases of an earlier run."""
        self.labels: list[int] = []
        self.scores: list[float] = []
        self.statistics: dict[str, list[float]] = {}
        self.path.unlink(missing_ok=True)  # it would contradict the scores of this run if no report comes of it

    def __call__(self, engine: Engine) -> None:
        """Take the cases of this batch."""
        for source, scored in _cases(engine):
            self.labels.append(int(source["label"]))
            self.scores.append(float(scored["anomaly_score"]))
            for name in ("intensity_mean", "intensity_std", "intensity_p95"):
                self.statistics.setdefault(name, []).append(float(scored[name]))

    def finish(self, engine: Engine) -> None:
        """Write and print the report; there is none if cases failed and the others lack a class."""
        n_failed = len(getattr(engine, "failures", ()))  # of a GuardedEvaluator
        if n_failed and len(set(self.labels)) < 2:
            engine.logger.warning("No metrics: among the cases that did not fail, normal or abnormal ones are missing.")
            return
        report = detection_report(
            self.labels,
            self.scores,
            float(self.scorer.case_threshold),
            n_bootstrap=self.n_bootstrap,
            seed=self.seed,
            baselines=self.statistics,
        )
        report["n_failed"] = n_failed
        write_json(self.path, report)
        print(format_report(report))
        if n_failed:
            print(f"Not in these metrics: {n_failed} cases that failed.")


def _cases(engine: Engine) -> Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Input and output dictionaries of each case in the current, decollated batch."""
    return zip(engine.state.batch, engine.state.output, strict=True)

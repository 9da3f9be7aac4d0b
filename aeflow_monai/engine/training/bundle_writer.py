"""Calibration of the detector and writing of its bundle at the end of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import ensure_tuple

from aeflow_monai.data.channel_order import common_channel_names
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.bundles.bundle import write_bundle, write_training_config
from aeflow_monai.engine.bundles.card import facts_of_data
from aeflow_monai.engine.config.stored_model import model_path
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.inference.detector import Detector, calibrate
from aeflow_monai.engine.runs.duplicates import FORM, fingerprints_of, warn_of_duplicates
from aeflow_monai.engine.runs.run_record import finish_record, hashes_of
from aeflow_monai.files import read_json
from aeflow_monai.result_files import RUN_RECORD
from aeflow_monai.score.thresholds import require_specificity

__all__ = ["BundleWriter"]


class BundleWriter:
    """Calibrate the trained detector and write the bundle when the training is completed.

    The config of the training is written at its start, so that an interrupted training can be resumed. A training that
    ends with an error leaves an earlier model in the same folder untouched.

    Args:
        folder: folder of the bundle.
        detector: the detector that is trained.
        held_out: batches of held-out normals, see `calibrate`.
        fitted: batches of normals of the training, see `calibrate`.
        split: datalists of the training and of the held-out normals, whose counts are in the model card.
        given: config of the training.
        seed: seed of the training.
        specificity: see `calibrate`.
        trained: batches of all normals of the training, see `calibrate`.
        varied: batches of their acquisition copies, see `calibrate`.
        slicer: see `calibrate`.

    Raises:
        ValueError: specificity out of range; raised at once, not when the training is over.
    """

    def __init__(
        self,
        folder: str | Path,
        detector: Detector,
        held_out: Iterable[Mapping[str, Any]],
        fitted: Iterable[Mapping[str, Any]],
        split: Sequence[Sequence[Mapping[str, Any]]],
        given: GivenConfig,
        seed: int = 0,
        specificity: float = 0.95,
        trained: Iterable[Mapping[str, Any]] = (),
        varied: Iterable[Mapping[str, Any]] = (),
        slicer: Slicer | None = None,
    ) -> None:
        require_specificity(specificity)
        self.folder = Path(folder)
        self.detector = detector
        self.held_out = held_out
        self.fitted = fitted
        self.trained = trained
        self.varied = varied
        self.slicer = slicer
        self.specificity = specificity
        data = facts_of_data(trained_on=split[0], held_out=split[1])
        self.facts = {"seed": seed, "specificity": specificity, "data": data}
        self.split = split
        self.given = given

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Write what is needed to resume an interrupted training, and record which images it sees."""
        self.seen = dict(zip(("trained_on", "thresholds_on"), map(fingerprints_of, self.split), strict=True))
        warn_of_duplicates(self.split[1], self.seen["thresholds_on"], self.seen["trained_on"])
        write_training_config(self.folder, self.given, self.facts)

    def __call__(self, engine: Engine) -> None:
        """Calibrate the detector and write the bundle."""
        normals = (self.fitted, self.trained, self.varied)
        calibrate(self.detector, self.held_out, self.specificity, *normals, self.slicer)
        record = self.folder / "logs" / RUN_RECORD
        card = {**self.facts, "versions": read_json(record)["versions"], **self.seen, **FORM}
        write_bundle(self.folder, self.detector, self._content(), card)
        names = ("trained_on", "held_out")
        finish_record(record, **{n: [*map(hashes_of, part)] for n, part in zip(names, self.split, strict=True)})
        thresholds = ", ".join(f"{n.replace('_', ' ')} {t:.3f}" for n, t in self.detector.score.thresholds.items())
        engine.logger.info(f"Calibrated on held-out normals: {thresholds}. Saved {model_path(self.folder)}.")

    def _content(self) -> dict[str, Any]:
        """Return the config of the training, with the names of the channels that its images tell."""
        content = dict(self.given.content)
        if not content.get("channel_names"):
            images = (ensure_tuple(item["image"]) for part in self.split for item in part)
            content["channel_names"] = [*common_channel_names(images)]
        return content

"""Ignite handlers of the training: a guard, pictures on the way, checkpoints, and the bundle at its end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader
from torch.utils.data import default_collate
from torch.utils.tensorboard import SummaryWriter

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.bundle import options_of, write_bundle, write_training_config
from aeflow_monai.engine.card import facts_of_data, hash_of_list
from aeflow_monai.engine.config import GivenConfig, differences
from aeflow_monai.engine.detector import Detector, calibrate, places_of
from aeflow_monai.engine.duplicates import FORM, fingerprints_of, warn_of_duplicates
from aeflow_monai.engine.run_folders import is_first_process
from aeflow_monai.engine.run_record import finish_record, hashes_of
from aeflow_monai.engine.stored_model import load_saved, model_path, write_saved
from aeflow_monai.files import read_json
from aeflow_monai.output.result_files import RUN_RECORD
from aeflow_monai.printable import first_line
from aeflow_monai.score.thresholds import require_specificity

__all__ = ["BundleWriter", "Checkpoints", "DivergenceGuard", "PictureLogger", "require_same_options"]

_CHECKPOINT = "a checkpoint of an interrupted training"


class BundleWriter:
    """Calibrate the trained detector, and write the bundle, when the training is completed.

    At the start the config of the training is written, so that an interrupted one can go on. A training that ends in an
    error leaves an earlier model in the same folder untouched.

    Args:
        folder: of the bundle.
        detector: that is trained.
        held_out: batches of held-out normals, see `calibrate`.
        fitted: batches of normals of the training, see `calibrate`.
        split: datalists of the training, which the model card counts: fitted on, and held out.
        given: config of the training.
        seed: of the training.
        specificity: see `calibrate`.
        trained: batches of all normals of the training, see `calibrate`.
        varied: batches of copies of them, see `calibrate`.
        slicer: see `calibrate`.

    Raises:
        ValueError: a specificity out of its range; now, not when the training is over.
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
        """Write what an interrupted training needs to go on, and note which images it sees."""
        self.seen = dict(zip(("trained_on", "thresholds_on"), map(fingerprints_of, self.split), strict=True))
        warn_of_duplicates(self.split[1], self.seen["thresholds_on"], self.seen["trained_on"])
        write_training_config(self.folder, self.given, self.facts)

    def __call__(self, engine: Engine) -> None:
        """Calibrate, and write the bundle."""
        normals = (self.fitted, self.trained, self.varied)
        calibrate(self.detector, self.held_out, self.specificity, *normals, self.slicer)
        record = self.folder / "logs" / RUN_RECORD
        card = {**self.facts, "versions": read_json(record)["versions"], **self.seen, **FORM}
        write_bundle(self.folder, self.detector, self.given.content, card)
        names = ("trained_on", "held_out")
        finish_record(record, **{n: [*map(hashes_of, part)] for n, part in zip(names, self.split, strict=True)})
        thresholds = ", ".join(f"{n.replace('_', ' ')} {t:.3f}" for n, t in self.detector.score.thresholds.items())
        engine.logger.info(f"Calibrated on held-out normals: {thresholds}. Saved {model_path(self.folder)}.")


class Checkpoints:
    """Save the state of a training after each epoch, and go on from one that was interrupted.

    Args:
        folder: of the checkpoints, of which the last two are kept.
        state: what is saved beside the trainer, by name.
        given: config of the training, and
        split: its datalists, which have to be those of the training that is resumed.
        resume: a checkpoint to go on from, if any.
        device: where it is loaded to.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is no checkpoint of a training, or of one with other options or data.
    """

    def __init__(
        self,
        folder: str | Path,
        state: Mapping[str, Any],
        given: GivenConfig,
        split: Sequence[Sequence[Mapping[str, Any]]],
        resume: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder = Path(folder)
        self.state = dict(state)
        self.resume = resume
        self.device = device
        self.is_first = is_first_process()
        images = [fingerprints_of(part) for part in split] if self.is_first else []  # the first process reads them all
        lists = [hash_of_list(part) for part in split]
        self.record = _Record({"options": options_of(given.content), "lists": lists, "images": images})
        if resume is not None:
            self.record.require_equal(resume)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        state = {**self.state, "trainer": engine}
        if self.resume is not None:
            engine.add_event_handler(Events.STARTED, self._load, state)
        if self.is_first:  # all processes go on from a checkpoint, the first one saves
            saved = Checkpoint(
                {**state, "record": self.record},
                _Files(self.folder),
                filename_pattern="checkpoint_epoch={global_step}.pt",
                n_saved=2,
                global_step_transform=lambda engine, _: engine.state.epoch,
            )
            engine.add_event_handler(Events.EPOCH_COMPLETED, saved)

    def _load(self, engine: Engine, state: dict[str, Any]) -> None:
        saved, epochs = load_saved(str(self.resume), _CHECKPOINT), engine.state.max_epochs
        before = saved.get("trainer", {}).get("max_epochs")
        if before != epochs:  # whoever counts in another way would end too early, before the learning rate is low
            raise ValueError(
                f"{self.resume} is of a training of {before} epochs, where this version of aeflow_monai counts "
                f"{epochs}. Go on with the version that wrote it, or train anew."
            )
        try:
            CheckpointLoader(str(self.resume), state, map_location=self.device)(engine)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.resume} does not fit this training ({first_line(error)}). Is it of another version of "
                "aeflow_monai, or of timm? Go on with the version that wrote it, or train anew."
            ) from error


class _Files(BaseSaveHandler):  # type: ignore[misc]
    """Checkpoints as files, each whole and with its hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        write_saved(self.folder / filename, checkpoint)

    def remove(self, filename: str) -> None:
        (self.folder / filename).unlink(missing_ok=True)


class _Record:
    """What a training was given, as a part of its checkpoints."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = json.loads(json.dumps(content))

    def state_dict(self) -> dict[str, str]:
        return {"text": json.dumps(self.content)}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        self.content = json.loads(state["text"])

    def require_equal(self, path: str | Path) -> None:
        """Refuse a checkpoint of a training that was given something else."""
        other = _recorded(path)
        _require_equal_options(other["options"], self.content["options"])
        if other["lists"] != self.content["lists"] or (
            self.content["images"] and other["images"] != self.content["images"]
        ):
            raise ValueError(
                "A training goes on with the images that it began with: cases, patients, labels or the images "
                f"themselves in --dataset_dir are others than those of {path}."
            )


def require_same_options(given: GivenConfig, resume: str | Path) -> None:
    """Refuse to go on from a checkpoint of a training with other options, before any image is read.

    Args:
        given: config of the training.
        resume: the checkpoint.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is no checkpoint of a training, or options differ; names each with both values.
    """
    _require_equal_options(_recorded(resume)["options"], json.loads(json.dumps(options_of(given.content))))


def _recorded(path: str | Path) -> dict[str, Any]:
    """What a training was given, by its checkpoint."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no checkpoint at {path}. Give one of an interrupted training: "
            "<its folder>/logs/checkpoints/checkpoint_epoch=<n>.pt."
        )
    saved = load_saved(path, _CHECKPOINT)
    try:
        found = json.loads(saved["record"]["text"])
        return {name: found[name] for name in ("options", "lists", "images")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Expected {_CHECKPOINT} in {path}; got a file of something else.") from error


def _require_equal_options(earlier: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if found := [*differences(earlier, given)]:
        described = "; ".join(map(str, found))
        raise ValueError(f"A training goes on with the options that it began with; these differ: {described}.")


class DivergenceGuard:
    """End a training that diverges with an error: at once if its loss is not finite, else before a model is written.

    A training that stays finite has diverged if at its end the validation loss is higher than that of the network as it
    was before the training.

    Args:
        validator: of the training, whose key metric is the validation loss; if None only a loss that is not finite
            counts.
    """

    def __init__(self, validator: SupervisedEvaluator | None = None) -> None:
        self.validator = validator
        self.before = math.inf

    def state_dict(self) -> dict[str, float]:
        """What a resumed training has to know."""
        return {"before": self.before}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take what an interrupted training knew."""
        self.before = float(state["before"])

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before what writes the model."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        if self.validator is not None:
            engine.add_event_handler(Events.STARTED, self.start, self.validator)
            engine.add_event_handler(Events.COMPLETED, self.finish, self.validator)

    def start(self, engine: Engine, validator: SupervisedEvaluator) -> None:
        """Measure the validation loss before the training, without a change to what is random in it."""
        self.before = _validation_loss(engine, validator)

    def finish(self, engine: Engine, validator: SupervisedEvaluator) -> None:
        """Compare the validation loss with that before the training.

        Raises:
            ValueError: it is higher.
        """
        # a training that is resumed after its last epoch has not validated
        metrics, name = validator.state.metrics, validator.state.key_metric_name
        after = float(metrics[name] if name in metrics else _validation_loss(engine, validator))
        if not after <= self.before:
            raise ValueError(
                f"The training diverged: its validation loss went from {self.before:.4g}, before the first epoch, to "
                f"{after:.4g}. Lower learning_rate, or network_def#network#clamp. No model is written, an earlier one "
                "is untouched."
            )

    def __call__(self, engine: Engine) -> None:
        """Look at the last loss.

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


class PictureLogger:
    """Write rows of image, reconstruction and anomaly map to TensorBoard after each epoch.

    During training the map is not calibrated yet, so it is standardised over the pictures that are shown together;
    the grey scale runs from 0 (the mean) to 6 standard deviations.

    Args:
        detector: that is trained.
        dataset: items with "image" (C, H, W); shown are some, evenly spread.
        log_dir: TensorBoard's folder.
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

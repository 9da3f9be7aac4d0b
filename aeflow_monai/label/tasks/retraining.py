"""The train task: the bundle's training on the images that readers marked normal."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.train.handler import prepare_stats
from monailabel.utils.others.generic import device_list

from aeflow_monai.engine.config.template import config_files
from aeflow_monai.engine.config.workflow import Workflow
from aeflow_monai.files import write_json
from aeflow_monai.label.background import is_orphan
from aeflow_monai.label.models import ModelStore
from aeflow_monai.label.options import CONFIRMATION, TRAINING, device_of, is_confirmed, training_options
from aeflow_monai.label.studies.final_labels import LabelledImage, labelled_images
from aeflow_monai.label.studies.records import read_report
from aeflow_monai.label.tasks.reader_metrics import VoxelEvaluation

__all__ = ["AnomalyTrainTask"]

_logger = logging.getLogger(__name__)

# Fixed values of data set options that do not apply to a datastore.
_OF_A_DATASTORE = {"layout": "decathlon", "modalities": [], "test_fraction": 0.0, "resume": None, "cache_dir": None}


class AnomalyTrainTask(TrainTask):  # type: ignore[misc]
    """Train on the images whose final label is empty, calibrate, and add the bundle to the store as a new version.

    It runs train.yaml of the newest version, so that its options are kept; without a version, the package's train.yaml
    with presets. Progress and validation are written after each epoch, as by MONAI Label's own tasks. If the training
    fails, the newest model stays in use.

    Args:
        models: store of the new version.
        evaluation: the scoring method whose report is part of the stats.
        presets: names or paths of presets for the first training, see `config_files`.
    """

    def __init__(self, models: ModelStore, evaluation: VoxelEvaluation, presets: Sequence[str] = ()) -> None:
        super().__init__("Train on the images that readers marked normal by an empty final label")
        self.models = models
        self.evaluation = evaluation
        self.first = config_files("train", *presets)
        self.stats_path = models.folder / "train_stats.json"

    def files(self) -> list[str]:
        """Return the config files of the next training."""
        newest = self.models.newest()
        return [str(self.models.folder_of(newest) / "configs" / "train.yaml")] if newest else self.first

    def config(self) -> dict[str, Any]:
        """Return the options that viewers show, with the values of the next training's config."""
        content = _content(*self.files())
        options = {name: content[key] for name, (key, _, _) in TRAINING.items()}
        return {**options, CONFIRMATION: False, "device": device_list()}

    def stats(self) -> dict[str, Any]:
        """Return the state of the last training and of the newest model, with its metrics on readers' labels.

        Returns:
            The stats of MONAI Label's tasks ("epoch", "total_epochs", "total_time", "train" and "eval" with metrics);
            "model_version"; "evaluation", see `VoxelEvaluation.report`. "best_metric", which viewers show as accuracy,
            is the Dice score on readers' labels, 0 if there is none. "total_time" is 0 if there was no training, since
            viewers show a task without it as running.
        """
        stats = read_report(self.stats_path)
        report = self.evaluation.report()
        newest = self.models.newest()
        return {
            **(stats or {"total_time": "0:00:00"}),
            "best_metric": report.get("metrics", {}).get("dice", 0.0),
            "model_version": newest,
            "evaluation": {name: value for name, value in report.items() if name != "labels"},
        }

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> None:
        """Refuse a training that cannot succeed, or that would replace the model by one trained on fewer normals.

        Args:
            request: see `__call__`.
            datastore: datastore of images and final labels.

        Raises:
            ValueError: an option has an invalid value.
            HTTPException: there are fewer normals than the model in use was trained on, and the request does not
                confirm this.
        """
        training_options(request)
        newest = self.models.newest()
        if newest is None or is_confirmed(request):
            return
        before, now = self.models.n_normals(newest), len(_normals(datastore))
        if now < before:
            raise HTTPException(
                409,
                detail=f"The model in use, version {newest}, was trained on {before} normal cases; {now} are marked "
                f"normal here, and the new model would take its place. Mark more, or send the option "
                f'"{CONFIRMATION}": true with the request to train all the same.',
            )

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train.

        Args:
            request: options, see `config`; defaults are those of the bundle's config.
            datastore: datastore of images and final labels.

        Returns:
            The stats of the training, with "model_version".

        Raises:
            ValueError: an option has an invalid value, or there are fewer than two normal images.
        """
        options = training_options(request)
        normals = _normals(datastore)
        if len({image.patient for image in normals}) < 2:
            raise ValueError(
                f"Training needs two or more images of different cases that a reader marked normal, by submitting an "
                f"empty final label; found {len(normals)} among {len(datastore.list_images())} images. Mark more."
            )
        started = datetime.now().astimezone()
        run = self.models.folder / "runs" / started.strftime("%Y%m%d_%H%M%S_%f")
        _write_datalist(run / "dataset.json", normals)
        stats = self._train(run, options, device_of(request))
        if is_orphan():
            raise RuntimeError("The server that began this training is gone: its model is not used.")
        stats["model_version"] = self.models.add(
            run, run=run.name, trained_on=[image.case for image in normals], options=options
        )
        # the store has the bundle, and checkpoints are only needed to inspect a failed training
        for left in ("models", "logs/checkpoints"):
            shutil.rmtree(run / left, ignore_errors=True)
        write_json(self.stats_path, stats)
        return stats

    def _train(self, run: Path, options: dict[str, Any], device: str) -> dict[str, Any]:
        start = time.time()
        workflow = Workflow(
            self.files(),
            workflow_type="train",
            logging_file=False,
            dataset_dir=str(run / "dataset.json"),
            output_dir=str(run),
            device=device,
            **{**_OF_A_DATASTORE, **options},
        )
        workflow.initialize()
        trainer = workflow.parser.get_parsed_content("train#trainer")
        evaluator = workflow.parser.get_parsed_content("validate#evaluator")

        def write_stats() -> dict[str, Any]:
            stats: dict[str, Any] = _plain(prepare_stats(start, trainer, evaluator))
            stats["total_epochs"] = trainer.state.max_epochs
            write_json(self.stats_path, stats)
            return stats

        def stop_if_orphan(engine: Engine) -> None:
            if is_orphan():
                raise RuntimeError("The server that began this training is gone, so the training ends.")

        trainer.add_event_handler(Events.EPOCH_COMPLETED, write_stats)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, stop_if_orphan)
        workflow.run()
        workflow.finalize()
        return write_stats()


@lru_cache(maxsize=1)
def _content(*files: str) -> dict[str, Any]:
    """Return the merged content of config files, cached, since those of a version do not change."""
    parser = ConfigParser()
    parser.read_config(list(files))
    return dict(parser.get())


def _normals(datastore: Datastore) -> list[LabelledImage]:
    return [image for image in labelled_images(datastore) if image.normal]


def _write_datalist(path: Path, normals: list[LabelledImage]) -> None:
    items = [
        {"image": os.path.relpath(image.image, path.parent), "label": 0, "case": image.case, "patient": image.patient}
        for image in normals
    ]
    write_json(path, {"training": items})


def _plain(value: Any) -> Any:
    """Convert a value for JSON: tensors to numbers, and non-finite numbers to None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Checkpoints of a training, from which an interrupted training is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from monai.handlers import CheckpointLoader

from aeflow_monai.engine.bundles.bundle import options_of
from aeflow_monai.engine.bundles.card import hash_of_list
from aeflow_monai.engine.config.config_content import differences
from aeflow_monai.engine.config.stored_model import load_saved, write_saved
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.runs.duplicates import fingerprints_of
from aeflow_monai.launch import is_first_process
from aeflow_monai.printable import first_line

__all__ = ["Checkpoints", "require_same_options"]

_CHECKPOINT = "a checkpoint of an interrupted training"


class Checkpoints:
    """Save the state of a training after each epoch, and resume an interrupted training.

    Args:
        folder: folder of the checkpoints; the last two are kept.
        state: objects to save in addition to the trainer, by name.
        given: config of the training; to resume a training it has to be the same.
        split: datalists of the training; to resume a training they have to be the same.
        resume: checkpoint to resume from, if any.
        device: device that it is loaded to.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is not a checkpoint of a training, or one of a training with other options or data.
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
        images = [fingerprints_of(part) for part in split] if self.is_first else []  # read by the first process for all
        lists = [hash_of_list(part) for part in split]
        self.record = _Record({"options": options_of(given.content), "lists": lists, "images": images})
        if resume is not None:
            self.record.require_equal(resume)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        state = {**self.state, "trainer": engine}
        if self.resume is not None:
            engine.add_event_handler(Events.STARTED, self._load, state)
        if self.is_first:  # every process loads the checkpoint, only the first one saves
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
        if before != epochs:  # the learning rate's schedule would not fit
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
    """Checkpoints as files, each written atomically and with its hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        write_saved(self.folder / filename, checkpoint)

    def remove(self, filename: str) -> None:
        (self.folder / filename).unlink(missing_ok=True)


class _Record:
    """Config and data of a training, as a part of its checkpoints."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = json.loads(json.dumps(content))

    def state_dict(self) -> dict[str, str]:
        return {"text": json.dumps(self.content)}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        self.content = json.loads(state["text"])

    def require_equal(self, path: str | Path) -> None:
        """Raise an error for a checkpoint of a training with another config or data."""
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
    """Raise an error for a checkpoint of a training with other options, before any image is read.

    Args:
        given: config of the training.
        resume: path of the checkpoint.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is not a checkpoint of a training, or options differ; names each with both values.
    """
    _require_equal_options(_recorded(resume)["options"], json.loads(json.dumps(options_of(given.content))))


def _recorded(path: str | Path) -> dict[str, Any]:
    """Return config and data of a training from its checkpoint."""
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

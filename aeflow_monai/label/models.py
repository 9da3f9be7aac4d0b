"""The app's models: one file per version, the newest is used, and none is ever half written or overwritten."""

from __future__ import annotations

import filecmp
import json
import logging
import os
import re
import shutil
import threading
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aeflow_monai.label.configs import BundleConfigs
from aeflow_monai.score.scoring import AnomalyScorer
from aeflow_monai.files import write_json

__all__ = ["ModelStore", "ModelVersion", "json_or_empty"]

_logger = logging.getLogger(__name__)
_NAME = re.compile(r"model_v(\d+)\.pt")


class ModelVersion(NamedTuple):
    """A model of the store: its number, counted from 1, and its file."""

    number: int
    path: Path


class ModelStore:
    """Calibrated models in a folder, `model_v<number>.pt` with a record `model_v<number>.json` of where each is from.

    A new version is written under another name first and renamed when it is whole, so that a training that fails or is
    killed leaves the newest version as it was. Loaded networks are kept, one per device, until a newer version is asked
    for.

    Args:
        folder: of the models; made if it is missing.
        configs: with the network that the models belong to.
    """

    def __init__(self, folder: str | Path, configs: BundleConfigs) -> None:
        self.folder = Path(folder)
        self.configs = configs
        self.folder.mkdir(parents=True, exist_ok=True)
        self._loaded: dict[str, tuple[ModelVersion, AnomalyScorer]] = {}
        self._lock = threading.Lock()

    def versions(self) -> list[ModelVersion]:
        """All models, from the oldest to the newest."""
        found = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted(ModelVersion(int(match[1]), path) for match, path in found)

    def newest(self) -> ModelVersion | None:
        """The version that is used; None if there is no model yet."""
        versions = self.versions()
        return versions[-1] if versions else None

    def require(self) -> ModelVersion:
        """The version that is used.

        Raises:
            FileNotFoundError: there is no model yet.
        """
        newest = self.newest()
        if newest is None:
            raise FileNotFoundError(
                "There is no model yet. Mark images as normal (submit an empty label) and start a training, or start "
                "the server with --model <model.pt> of a training with the bundle."
            )
        return newest

    def next_version(self) -> ModelVersion:
        """The version that will be the next; its file is not there yet."""
        newest = self.newest()
        number = newest.number + 1 if newest else 1
        return ModelVersion(number, self.folder / f"model_v{number}.pt")

    def trained_on(self, version: ModelVersion) -> set[str]:
        """Cases of the datastore that a version was trained on; empty for a model that was brought along."""
        return set(json_or_empty(version.path.with_suffix(".json")).get("trained_on", []))

    def add(self, path: str | Path, **record: Any) -> ModelVersion:
        """Take a checkpoint in as the newest version, unless it is one of the versions already.

        Args:
            path: of a checkpoint as a training with the bundle writes it; it is copied.
            record: what JSON can hold, of where it is from.

        Returns:
            The new version, or the one that it is equal to.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no calibrated checkpoint of the configs' network.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"Expected a model at {path}; there is no such file. Correct --model.")
        for version in self.versions():
            if filecmp.cmp(path, version.path, shallow=False):
                return version
        scorer = self._read(path, "cpu")
        added = self.next_version()
        number, place = added
        unfinished = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            shutil.copyfile(path, unfinished)
            thresholds = {
                name: float(getattr(scorer, name)) for name in ("case_threshold", "slice_threshold", "map_threshold")
            }
            written = datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(place.with_suffix(".json"), {"version": number, "written": written, **thresholds, **record})
            unfinished.replace(place)
        finally:
            unfinished.unlink(missing_ok=True)
        _logger.info(f"Model version {number} is {place}")
        return added

    def load(self, device: str) -> tuple[ModelVersion, AnomalyScorer]:
        """The newest version and its network, in evaluation mode.

        Args:
            device: of torch, such as "cpu" or "cuda:0".

        Returns:
            The version and the network, which is shared by all callers.

        Raises:
            FileNotFoundError: there is no model yet.
            ValueError: the newest file is no calibrated checkpoint of the configs' network.
        """
        with self._lock:
            newest = self.require()
            kept = self._loaded.get(device)
            if kept is None or kept[0] != newest:
                self._loaded[device] = kept = (newest, self._read(newest.path, device))
            return kept

    def _read(self, path: Path, device: str) -> AnomalyScorer:
        try:
            checkpoint = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # of pickle, zip or torch, as the file happens to be broken
            raise ValueError(
                f"Expected a model in {path}; it cannot be read ({type(error).__name__}). It is not whole or no "
                "checkpoint: give the model.pt that a training ends with."
            ) from error
        if not isinstance(checkpoint, dict) or "model" not in checkpoint:
            raise ValueError(
                f"Expected a checkpoint with the key 'model' in {path}; there is none. Give the model.pt that a "
                "training with the bundle ends with."
            )
        scorer: AnomalyScorer = self.configs.parser("inference.yaml").get_parsed_content("network_def")
        try:
            scorer.load_state_dict(checkpoint["model"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not scorer.is_calibrated:
            raise ValueError(
                f"The model in {path} is not calibrated, so it comes from the middle of a training. Give the model.pt "
                "that a training ends with."
            )
        return scorer.to(torch.device(device)).eval()


def json_or_empty(path: Path) -> dict[str, Any]:
    """The content of a JSON file that need not be there.

    Args:
        path: of the file.

    Returns:
        Its content; an empty dictionary if there is no such file.
    """
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

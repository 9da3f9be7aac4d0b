"""The app's models: one bundle per version; the newest is used, and none is half-written or overwritten."""

from __future__ import annotations

import logging
import re
import shutil
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from aeflow_monai.engine.bundles.model import Model
from aeflow_monai.engine.config.fixed_options import require_own_config
from aeflow_monai.engine.config.stored_model import model_path, read_model
from aeflow_monai.errors import describe_error
from aeflow_monai.files import new_folder, read_json, write_json

__all__ = ["ModelStore", "require_bundle"]

_logger = logging.getLogger(__name__)
# A folder renamed to v3.withdrawn is no longer used, and its number is not reused.
_NAME = re.compile(r"v(\d+)(\.withdrawn)?")
# Parts of a training's folder that make up the bundle; its logs are not copied.
BUNDLE = ("configs", "models", "docs", "LICENSE")
_PARTS = ("configs/metadata.json", "configs/inference.yaml", "record.json")


class ModelStore:
    """Bundles in a folder, named `v<number>`, with a record.json on the origin of each.

    A new version is written under a temporary name and renamed when it is complete, so that a failed or killed training
    leaves the newest version unchanged. A folder without a complete bundle is not a version, whatever its name. Opened
    models are cached, one per device, until another version is requested.

    Args:
        folder: folder of the models; created if missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._opened: dict[str, tuple[int, Model]] = {}
        self._faults: dict[tuple[Any, ...], str] = {}
        self._lock = threading.Lock()

    def versions(self) -> list[int]:
        """Return the numbers of all models, from 1, from the oldest to the newest."""
        return [number for number in self._numbers() if not self.fault_of(number)]

    def fault_of(self, version: int) -> str:
        """Return why a version cannot be used; empty if it can. The result is cached until its files change.

        Args:
            version: number of a folder, which need not exist.
        """
        folder = self.folder_of(version)
        files = [model_path(folder), *(folder / name for name in _PARTS)]
        if not files[0].is_file():
            return "it has no model"
        stats = [file.stat() if file.exists() else None for file in files]
        key = (version, *((stat.st_mtime_ns, stat.st_size) if stat else None for stat in stats))
        if key not in self._faults:
            try:
                require_own_config(folder, None)
                dict(read_json(folder / "record.json"))
            except Exception as error:  # whatever the folder holds, older versions stay usable
                self._faults[key] = describe_error(error)
                _logger.warning(f"Model version {version} is damaged and not used ({type(error).__name__}).")
                _logger.debug(f"Model version {version}: {self._faults[key]}")
            else:
                self._faults[key] = ""
        return self._faults[key]

    def folder_of(self, version: int) -> Path:
        """Return the bundle folder of a version, which need not exist."""
        return self.folder / f"v{version}"

    def newest(self) -> int | None:
        """Return the version in use; None if there is no model yet."""
        return max(self.versions(), default=None)

    def require(self) -> int:
        """Return the version in use.

        Raises:
            FileNotFoundError: there is no model yet.
        """
        newest = self.newest()
        if newest is None:
            raise FileNotFoundError(
                "There is no model yet. Mark images as normal (submit an empty label) and start a training, or start "
                "the server with --model <folder of a training>."
            )
        return newest

    def trained_on(self, version: int) -> set[str]:
        """Return the cases of the datastore that a version was trained on; empty for a model trained elsewhere."""
        return set(read_json(self.folder_of(version) / "record.json").get("trained_on", []))

    def n_normals(self, version: int) -> int:
        """Return how many normal cases a version was trained and calibrated on; 0 if not recorded.

        Args:
            version: version in this store.
        """
        if trained_on := self.trained_on(version):
            return len(trained_on)
        data = read_model(model_path(self.folder_of(version))).card.get("data", {})
        return sum(int(data.get(f"{name}: cases", 0)) for name in ("trained on", "held out"))

    def add(self, folder: str | Path, **record: Any) -> int:
        """Add a bundle as the newest version, unless it already is one of the versions.

        Args:
            folder: bundle of a training; it is copied without its logs.
            record: values on its origin that JSON can hold.

        Returns:
            The new version, or the existing one with the same model.

        Raises:
            FileNotFoundError: the folder does not exist, or holds no model.
            ValueError: see `require_bundle`.
        """
        folder = require_bundle(folder)
        for version in self.versions():
            if _hash_of(self.folder_of(version)) == _hash_of(folder):
                return version
        added = max(self._numbers(), default=0) + 1
        place = self.folder_of(added)
        with new_folder(place) as unfinished:
            for part in BUNDLE:
                if (folder / part).is_dir():
                    shutil.copytree(folder / part, unfinished / part)
                elif (folder / part).is_file():
                    shutil.copyfile(folder / part, unfinished / part)
            of_model = {
                "written": datetime.now().astimezone().isoformat(timespec="seconds"),
                "thresholds": Model(unfinished).detector.score.thresholds,  # opens the copy
            }
            write_json(unfinished / "record.json", {"version": added, **of_model, **record})
        _logger.info(f"Model version {added} is ready, and used from now on.")
        _logger.debug(f"Model version {added} is {place}.")
        return added

    def begin_with(self, folder: str | Path) -> None:
        """Add the bundle that a server is started with, and log it if a newer version is used instead.

        Args:
            folder: see `add`.
        """
        added, newest = self.add(folder, imported_from=Path(folder).name), self.newest()
        if newest != added:
            _logger.warning(
                f"The model given is version {added} already, and version {newest}, which is newer, is used. To go "
                f"back, rename the folders of the newer versions, such as v{newest} to v{newest}.withdrawn."
            )

    def open(self, version: int, device: str) -> Model:
        """Open the model of a version, in evaluation mode.

        Args:
            version: version in this store.
            device: torch device such as "cpu" or "cuda:0".

        Returns:
            The model, shared by all callers.

        Raises:
            FileNotFoundError: the version does not exist.
            ValueError: the parts of its bundle do not belong together.
        """
        with self._lock:
            kept = self._opened.get(device)
            if kept is None or kept[0] != version:
                self._opened[device] = kept = (version, Model(self.folder_of(version), device))
            return kept[1]

    def _numbers(self) -> list[int]:
        """Return the numbers of all folders, including removed, withdrawn and damaged models."""
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def require_bundle(folder: str | Path) -> Path:
    """Refuse a path that is not the complete bundle of a training.

    Args:
        folder: folder of the bundle.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no model.
        ValueError: it is a file; its model is damaged, or belongs to another bundle or package version.
    """
    folder = Path(folder)
    if folder.is_file():
        read_model(folder)  # gives a more specific error for an invalid model
        raise ValueError(
            f"Expected the folder of a bundle; {folder} is the model alone, without its preprocessing. Give the folder "
            "that its training wrote, in which it is models/model.pt."
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected the folder of a bundle at {folder}; there is none. Correct --model.")
    require_own_config(folder, None)
    return folder


def _hash_of(folder: Path) -> Any:
    return read_json(folder / "configs" / "metadata.json").get("model_sha256")

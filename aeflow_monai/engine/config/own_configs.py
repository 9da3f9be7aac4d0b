"""The config files of a bundle: which keys are options of a run, and whether the rest is unchanged since training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aeflow_monai.engine.config.config_text import read_config
from aeflow_monai.files import read_json

__all__ = ["FREE", "digests_of_configs", "require_unchanged"]

# Options of a run of the model. Everything else in its config belongs to the bundle.
FREE = (
    *("dataset_dir", "layout", "series", "output_dir", "overwrite", "outputs", "output_ext", "pictures"),
    *(
        "device",
        "runtime",
        "imports",
        "normal_classes",
        "test_fraction",
        "seed",
        "n_bootstrap",
        "lesion_free_slices",
        "specificity",
    ),
    *("inferer#batch_size", "inferer#saliency", "dataloader#num_workers"),
)
_DIGESTS = "configs_sha256"
_VERBS = ("inference.yaml", "evaluate.yaml", "calibrate.yaml")


def digests_of_configs(folder: str | Path) -> dict[str, dict[str, str]]:
    """Return the digests of the configs in a folder for its metadata.json, see `require_unchanged`.

    Args:
        folder: folder of the configs.
    """
    return {_DIGESTS: {name: _digest(read_config(Path(folder, name))) for name in _VERBS}}


def require_unchanged(file: str | Path) -> None:
    """Raise an error if a config of a bundle is damaged, or changed in more than the options of a run.

    Args:
        file: a config; one that no training wrote is not checked, nor is a bundle of an earlier version.

    Raises:
        ValueError: it is not as the training wrote it.
    """
    file = Path(file)
    written = read_json(file.parent / "metadata.json").get(_DIGESTS, {}) if file.name in _VERBS else {}
    if isinstance(written, Mapping) and written.get(file.name, known := _digest(read_config(file))) != known:
        raise ValueError(
            f"{file} is not as the training wrote it, by the hash in metadata.json. Take both files of the bundle "
            "again, and give options on the command line, or in a second config file."
        )


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_bound(config), default=str).encode()).hexdigest()


def _bound(part: Any, above: str = "") -> Any:
    """Return the config, or a part of it, without the options of a run; imports are one only in a preset."""
    if isinstance(part, list):
        return [_bound(value, f"{above}0#") for value in part]
    if not isinstance(part, Mapping):
        return part
    kept = {str(key): value for key, value in part.items() if f"{above}{key}" not in FREE or key == "imports"}
    return [(key, _bound(kept[key], f"{above}{key}#")) for key in sorted(kept)]

"""The bundle that a training writes: what a model knows travels with it.

RUN/
configs/   metadata.json, inference.yaml, evaluate.yaml, calibrate.yaml, train.yaml: this training's
models/    model.pt: the state dict, and the training's config as text
docs/      README.md: the model card
logs/      checkpoints, TensorBoard, run.json
LICENSE
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import shutil
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import timm
import torch
import yaml
from monai.bundle import ConfigParser
from torch import Tensor

from aeflow_monai.about import __version__
from aeflow_monai.engine.card import write_card
from aeflow_monai.engine.config import (
    GivenConfig,
    differences,
    ids_of,
    refuse_unknown_keys,
    template_root,
    with_references,
)
from aeflow_monai.engine.detector import Detector
from aeflow_monai.files import home, read_json, replacing, sha256_of, write_json

__all__ = [
    "StoredModel",
    "load_saved",
    "model_path",
    "options_of",
    "read_model",
    "require_own_config",
    "run_folder",
    "write_bundle",
    "write_training_config",
]

# What a training fixes: these parts of its config, and all that they refer to.
_FIXED = ("network_def", "slicer", "preprocessing", "modalities")
# Options of a data set, which evaluation and calibration take over from the training unless they are given.
_OF_THE_DATA = ("layout", "normal_classes", "test_fraction", "seed", "lesion_free_slices", "specificity")
# Paths of the training, which say nothing of the model.
_PATHS = ("dataset_dir", "output_dir", "resume", "cache_dir")
# What the model card does not list among the options that differ from the template's.
_NO_OPTIONS = (*_PATHS, "device", "imports", "initialize", "run", "finalize")
# What inference has and evaluation, which writes no maps, has no use for.
_OF_OUTPUTS = ("outputs", "output_ext", "post_transforms")
_CHECKED = ("models/model.pt", "configs/metadata.json", "configs/inference.yaml")
# Where the configs that use a model refer to what the training fixed.
_BOUND = (
    *("bundle_root", "given", "network", "scores", "items", "normals"),
    *("dataset#_target_", "dataset#transform", "dataloader#dataset", "inferer#_target_", "inferer#slicer"),
    *("evaluator#_target_", "evaluator#network", "evaluator#inferer", "evaluator#amp", "evaluator#prepare_batch"),
    *("evaluator#postprocessing", "handlers", "listing", "datalist", "initialize"),
)
_HEADERS = {
    "train": "the training itself: to go on after an interruption (--resume), or to train on other data",
    "inference": "maps and scores for images without labels",
    "evaluate": "metrics on labelled images",
    "calibrate": "score and thresholds anew, on normal images of another site",
}


class StoredModel(NamedTuple):
    """What a model.pt holds.

    Attributes:
        state: the detector's state dict.
        config: the training's merged config, without its paths.
        card: what the model card says of data, seed and versions.
    """

    state: Mapping[str, Tensor]
    config: dict[str, Any]
    card: dict[str, Any]


def model_path(folder: str | Path) -> Path:
    """The model of a bundle."""
    return Path(folder, "models", "model.pt")


def run_folder(output_dir: str | None) -> str:
    """Folder of a training: the one that was given, or a new one below the home folder, named by the time.

    Raises:
        ValueError: none was given to a training in several processes, which could not agree on a name.
    """
    if output_dir is not None:
        return str(Path(output_dir).expanduser().absolute())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("A training in several processes needs a folder that all of them know: give --output_dir.")
    return home("runs", f"{datetime.now():%Y%m%d-%H%M%S}")


def read_model(path: str | Path) -> StoredModel:
    """Read a model.pt; nothing in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, cut short, a checkpoint from the middle of a training, or of version 0.1.0.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no trained model at {path}. Train one first, go on with an interrupted training (--resume <a "
            "checkpoint in its folder logs>), or give the folder of a finished one."
        )
    content = load_saved(path, "is no model, or not whole: expected the model.pt that a training ends with.")
    state = content.get("model")
    if not (isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{path} is no model: expected the model.pt that a training ends with.")
    if "config" not in content:
        what = "a checkpoint from the middle of a training" if "trainer" in content else "a model of version 0.1.0"
        raise ValueError(
            f"{path} is {what}, which does not know its preprocessing. "
            + ("Finish the training with --resume." if "trainer" in content else "Train again with this version.")
        )
    text = json.loads(content["config"])
    return StoredModel(state, text["config"], text["card"])


def load_saved(path: str | Path, otherwise: str) -> dict[str, Any]:
    """What a training saved in a file; nothing in it is run.

    Args:
        path: of the file.
        otherwise: what the error says of a file that torch cannot read, behind its path.

    Raises:
        ValueError: torch cannot read it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:  # RuntimeError: cut short
        raise ValueError(f"{path} {otherwise}") from error
    return content if isinstance(content, dict) else {}


def require_own_config(folder: str | Path, given: GivenConfig | None) -> StoredModel:
    """Refuse a bundle whose parts do not belong together, and options that differ from those of its training.

    Args:
        folder: of the bundle.
        given: config of the run; nothing of it is compared if None.

    Returns:
        What its model.pt holds.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model is another one than the bundle was written with; an option is unknown, or fixed by the
            training and given another value.
    """
    path, metadata, inference = (Path(folder, name) for name in _CHECKED)
    stored = read_model(path)
    trained = stored.config
    if missing := [str(file) for file in (metadata, inference) if not file.is_file()]:
        raise FileNotFoundError(f"The bundle in {folder} is not whole: {missing[0]} is missing. Copy the whole folder.")
    if read_json(metadata).get("model_sha256") != sha256_of(path):
        raise ValueError(
            f"{path} is not the model that the bundle in {folder} was written with. Put the bundle's own model back, "
            "or use the whole folder that this model came with."
        )
    fixed, written = _fixed(trained), ConfigParser.load_config_file(inference)
    if found := [*differences(fixed, {key: written.get(key) for key in fixed})]:
        name, first, second = found[0]
        raise ValueError(
            f"{inference} is not the config that {path} was trained with: {name} is {second!r} there, and was "
            f"{first!r}. Use the whole folder that the training wrote, unchanged."
        )
    if given is None:
        return stored
    own, content = ConfigParser.load_config_file(given.files[0]), _with_file_names(given.content)
    replaced = [id for id in _BOUND if _at(own, id) != _at(content, id)]
    if replaced:
        raise ValueError(
            f"{', '.join(replaced)} of the bundle in {folder} belong to its training and cannot be replaced. Leave "
            "them away, or train again."
        )
    # options of the training alone, such as those of a preset, may be said again
    said = [key for key in content if key in trained and key not in own and key not in _PATHS]
    fixed |= {key: _counterpart(trained[key], content[key]) for key in said}
    if found := [*differences(fixed, {key: content.get(key) for key in fixed})]:
        raise ValueError(
            f"The training of {folder} has fixed these options: {'; '.join(map(str, found))}. Leave them away, or "
            "train again with other values."
        )
    refuse_unknown_keys(content, also_known=[*own, *ids_of(trained)])
    return stored


def write_training_config(folder: str | Path, given: GivenConfig, record: Mapping[str, Any]) -> None:
    """Write what an interrupted training needs to go on, at its start: its config, and logs/run.json.

    Args:
        folder: of the bundle.
        given: config of the training.
        record: what else run.json holds of it.
    """
    folder = Path(folder)
    _write_yaml(folder, "train", _training(given.content))
    _copy_from_template(folder)
    versions = {
        "aeflow_monai": __version__,
        "python": platform.python_version(),
        **{module.__name__: str(module.__version__) for module in (torch, monai, np, timm)},
    }
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    content = {"command": given.command, "started": started, "versions": versions, **record}
    write_json(folder / "logs" / "run.json", content)


def write_bundle(folder: str | Path, detector: Detector, config: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    """Write a calibrated detector as a complete bundle; all files beside their places first, then moved at once.

    Args:
        folder: of the bundle.
        detector: calibrated.
        config: the training's merged config.
        card: what the model card says of data, seed and versions, see `write_card`.
    """
    place = Path(folder)
    folder = place / f".{os.getpid()}.bundle"
    (folder / "configs").mkdir(parents=True)
    try:
        _write_files(folder, detector, config, card)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            target = place / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder: Path, detector: Detector, config: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    paths = {*_PATHS} - ({"dataset_dir"} if _is_embedded(config) else set())
    trained = _with_file_names({key: value for key, value in config.items() if key not in paths})
    for name in ("inference", "evaluate", "calibrate"):
        _write_yaml(folder, name, _scoring(name, config))
    _write_yaml(folder, "train", _training(config))
    _copy_from_template(folder)
    text = json.dumps({"aeflow_monai": __version__, "config": trained, "card": card})
    path = model_path(folder)
    with replacing(path) as unfinished:
        torch.save({"model": detector.state_dict(), "config": text}, unfinished)
    metadata = read_json(template_root() / "configs" / "metadata.json")
    image, pred = (
        metadata["network_data_format"][side][name] for side, name in (("inputs", "image"), ("outputs", "pred"))
    )
    stride, channels = detector.network.encoder.strides[-1], detector.network.encoder.in_channels
    image |= {"num_channels": channels, "channel_def": {str(n): f"channel {n}" for n in range(channels)}}
    image["spatial_shape"] = pred["spatial_shape"] = [f"{stride}*n", f"{stride}*n"]
    write_json(folder / "configs" / "metadata.json", {**metadata, "model_sha256": sha256_of(path)})
    write_card(folder, detector.score, {**card, "options": _options_unlike_the_template(trained)})


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a training's config that all who use the model share."""
    fixed = {key: deepcopy(config[key]) for key in with_references(config, _FIXED)}
    encoder = fixed.get("network_def", {}).get("network", {}).get("encoder", {})
    if "weights" in encoder:  # which come with the model
        encoder["weights"] = "checkpoint"
        fixed.pop("encoder_weights", None)
    return fixed


def _at(config: Any, id: str) -> Any:
    """What stands at an id, None if nothing does."""
    for key in id.split("#"):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _counterpart(trained: Any, given: Any) -> Any:
    """The part of a trained value that a given one speaks of: of a plain section not all has to be said."""
    if isinstance(trained, Mapping) and isinstance(given, Mapping) and "_target_" not in given:
        return {key: _counterpart(trained.get(key), value) for key, value in given.items()}
    return trained


def _with_file_names(config: Any) -> Any:
    """A config with names in place of absolute paths, such as that of the encoder's weights."""
    if isinstance(config, Mapping):
        return {key: _with_file_names(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [_with_file_names(value) for value in config]
    return Path(config).name if isinstance(config, str) and Path(config).is_absolute() else config


def _scoring(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Config of a verb that uses a model: the template's, with what the training fixed in its middle."""
    parser = ConfigParser()
    names = ["inference", name] if name == "evaluate" else [name]
    parser.read_config([str(template_root() / "configs" / f"{each}.yaml") for each in names])
    unused = (ConfigParser.meta_key, *(_OF_OUTPUTS if name == "evaluate" else ()))
    template = {key: value for key, value in parser.get().items() if key not in unused}
    template |= {key: config[key] for key in _OF_THE_DATA if key in template and key in config and name != "inference"}
    template["imports"] = list(dict.fromkeys([*template["imports"], *config["imports"]]))
    if not _is_embedded(config):
        template["dataset_dir"] = None
    items = list(template.items())
    first = list(template).index("bundle_root")  # that is no plain option
    return dict([*items[:first], *_fixed(config).items(), *items[first:]])


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config of the training itself, which goes on in its own folder and says no path."""
    content = {**config, "output_dir": "$@bundle_root", "resume": None, "cache_dir": None}
    if not _is_embedded(config):
        content["dataset_dir"] = None
    return content


def _is_embedded(config: Mapping[str, Any]) -> bool:
    """Whether the training is on the embedded data, which is there on every machine."""
    return str(config.get("dataset_dir")).startswith("$aeflow_monai.")


def _copy_from_template(folder: Path) -> None:
    for name in ("configs/logging.conf", "LICENSE"):
        shutil.copyfile(template_root() / name, folder / name)


def _write_yaml(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    header = f"# Written by a training with aeflow_monai {__version__}: {_HEADERS[name]}.\n"
    text = yaml.safe_dump(dict(content), sort_keys=False, width=110, default_flow_style=None, allow_unicode=True)
    with replacing(folder / "configs" / f"{name}.yaml") as unfinished:
        unfinished.write_text(header + text, encoding="utf-8")


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a training's config decides what comes of it."""
    return {key: value for key, value in config.items() if key not in _NO_OPTIONS}


def _options_unlike_the_template(trained: Mapping[str, Any]) -> list[str]:
    """Options of a training that differ from the template's, as name and value."""
    template = ConfigParser.load_config_file(template_root() / "configs" / "train.yaml")
    found = differences(options_of(template), options_of(trained))
    return [f"`{name}`: {_shown(second)} (default {_shown(first)})" for name, first, second in found]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."

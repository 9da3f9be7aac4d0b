"""The bundle that a training writes: a model with its configs, documentation and logs.

RUN/
configs/   metadata.json, inference.yaml, evaluate.yaml, calibrate.yaml, train.yaml: this training's
models/    model.pt: the state dict, and the training's config as text
docs/      README.md: the model card
logs/      checkpoints, TensorBoard, run.json
LICENSE
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from aeflow_monai.about import __version__
from aeflow_monai.engine.bundles.card import write_card
from aeflow_monai.engine.config.config_content import differences, with_file_names
from aeflow_monai.engine.config.config_text import read_configs
from aeflow_monai.engine.config.fixed_options import PATHS, fixed_options
from aeflow_monai.engine.config.own_configs import digests_of_configs
from aeflow_monai.engine.config.stored_model import model_path, not_finite, write_saved
from aeflow_monai.engine.config.template import template_root
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.engine.runs.run_record import describe_run
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.files import read_json, replacing, unfinished_path, write_json
from aeflow_monai.result_files import RUN_RECORD

__all__ = ["options_of", "write_bundle", "write_training_config"]

# Options of the data that evaluation and calibration take over from the training by default.
_OF_THE_DATA = ("layout", "series", "normal_classes", "test_fraction", "seed", "lesion_free_slices", "specificity")
# Keys of the config that the model card does not list as options.
_NO_OPTIONS = (*PATHS, "device", "imports", "initialize", "run", "finalize")
# Options of inference that evaluation, which writes no maps, does not have.
_OF_OUTPUTS = ("outputs", "output_ext", "post_transforms")
# Packages whose versions have separate keys in MONAI's metadata.json.
_IN_METADATA = {"monai": "monai", "pytorch": "torch", "numpy": "numpy"}
_HEADERS = {
    "train": "the training itself: to go on after an interruption (--resume), or to train on other data",
    "inference": "maps and scores for images without labels",
    "evaluate": "metrics on labelled images",
    "calibrate": "score and thresholds anew, on normal images of another site",
}


def write_training_config(folder: str | Path, given: GivenConfig, record: Mapping[str, Any]) -> None:
    """Write the config and logs/run.json at the start of a training, so that it can be resumed.

    Args:
        folder: folder of the bundle.
        given: config of the training.
        record: further content of run.json.
    """
    folder = Path(folder)
    path = folder / "logs" / RUN_RECORD
    begun = describe_run(given)
    earlier = read_json(path).get("commands", []) if given.content.get("resume") is not None else []
    command = {name: begun.pop(name) for name in ("started", "command")}
    # first of all, so that the folder of a killed training can be recognised
    write_json(path, {**begun, "commands": [*earlier, command], **record})
    _write_yaml(folder, "train", _training(given.content))
    _copy_from_template(folder)


def write_bundle(folder: str | Path, detector: Detector, config: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    """Write a calibrated detector as a complete bundle; all files are written aside first, then moved together.

    Args:
        folder: folder of the bundle.
        detector: a calibrated detector.
        config: the training's merged config.
        card: data, seed and versions for the model card, see `write_card`.

    Raises:
        ValueError: the detector holds NaN or infinite values, for example after a calibration with extreme options.
    """
    if wrong := not_finite(detector.state_dict()):
        raise ValueError(
            f"The calibration gave NaN or infinite values in {wrong}: no image could be scored with this model, and "
            "none is written. Bring the options network_def#score nearer to their defaults, or lower learning_rate."
        )
    place = Path(folder)
    folder = unfinished_path(place / "bundle")
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
    paths = {*PATHS} - ({"dataset_dir"} if _is_embedded(config) else set())
    trained = with_file_names({key: value for key, value in config.items() if key not in paths})
    for name in ("inference", "evaluate", "calibrate"):
        _write_yaml(folder, name, _scoring(name, config))
    _write_yaml(folder, "train", _training(config))
    _copy_from_template(folder)
    text = json.dumps({"aeflow_monai": __version__, "config": trained, "card": card})
    path = model_path(folder)
    write_saved(path, {"model": detector.state_dict(), "config": text})
    hashes = {"model_sha256": sha256_of(path), **digests_of_configs(folder / "configs")}
    write_json(folder / "configs" / "metadata.json", {**_metadata(detector, config, card), **hashes})
    write_card(folder, detector.score, {**card, "options": _options_unlike_the_template(trained)})


def _metadata(detector: Detector, config: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's metadata.json with the versions, channels and sizes of the training."""
    metadata, trained_with = read_json(template_root() / "configs" / "metadata.json"), card["versions"]
    metadata |= {f"{name}_version": trained_with[package] for name, package in _IN_METADATA.items()}
    required = "required_packages_version"
    metadata[required] = {name: trained_with.get(name) or version(name) for name in metadata[required]}
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    stride, channels = detector.network.encoder.strides[-1], detector.network.encoder.in_channels
    names = config.get("channel_names") or []
    names = names if len(names) == channels else [f"channel {n}" for n in range(channels)]
    image |= {"num_channels": channels, "channel_def": {str(n): name for n, name in enumerate(names)}}
    image["spatial_shape"] = pred["spatial_shape"] = [f"{stride}*n", f"{stride}*n"]
    return metadata


def _scoring(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a verb that uses a model: the template's, with the options that the training fixed."""
    parser = ConfigParser()
    names = ["inference", name] if name == "evaluate" else [name]
    parser.read_config(read_configs(template_root() / "configs" / f"{each}.yaml" for each in names))
    unused = (ConfigParser.meta_key, *(_OF_OUTPUTS if name == "evaluate" else ()))
    template = {key: value for key, value in parser.get().items() if key not in unused}
    template |= {key: config[key] for key in _OF_THE_DATA if key in template and key in config and name != "inference"}
    template["imports"] = list(dict.fromkeys([*template["imports"], *config["imports"]]))
    if not _is_embedded(config):
        template["dataset_dir"] = None
    items = list(template.items())
    first = list(template).index("bundle_root")  # the first key that is not a plain option
    return dict([*items[:first], *fixed_options(config).items(), *items[first:]])


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the training itself, without paths, which resumes in its own folder."""
    content = {**config, "output_dir": "$@bundle_root", "resume": None, "cache_dir": None}
    if not _is_embedded(config):
        content["dataset_dir"] = None
    return content


def _is_embedded(config: Mapping[str, Any]) -> bool:
    """Return whether the training is on the embedded data, which every machine has."""
    return str(config.get("dataset_dir")).startswith("$aeflow_monai.")


def _copy_from_template(folder: Path) -> None:
    for name in ("configs/logging.conf", "LICENSE"):
        with replacing(folder / name) as unfinished:
            shutil.copyfile(template_root() / name, unfinished)


def _write_yaml(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    header = f"# Written by a training with aeflow_monai {__version__}: {_HEADERS[name]}.\n"
    text = yaml.safe_dump(dict(content), sort_keys=False, width=110, default_flow_style=None, allow_unicode=True)
    with replacing(folder / "configs" / f"{name}.yaml") as unfinished:
        unfinished.write_text(header + text, encoding="utf-8")


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a training's config that determine its result."""
    return {key: value for key, value in config.items() if key not in _NO_OPTIONS}


def _options_unlike_the_template(trained: Mapping[str, Any]) -> list[str]:
    """Return the options of a training that differ from the template's, as name and value."""
    template = ConfigParser.load_config_file(template_root() / "configs" / "train.yaml")
    found = differences(options_of(template), options_of(trained))
    return [f"`{name}`: {_shown(second)} (default {_shown(first)})" for name, first, second in found]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."

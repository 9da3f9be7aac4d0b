"""Options that a training fixes, and checks that a run of the model does not change them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from aeflow_monai.engine.config.config_content import (
    Difference,
    differences,
    ids_of,
    refuse_unknown_keys,
    with_file_names,
    with_references,
)
from aeflow_monai.engine.config.config_text import read_config
from aeflow_monai.engine.config.option_types import PATHS
from aeflow_monai.engine.config.own_configs import FREE, require_unchanged
from aeflow_monai.engine.config.stored_model import StoredModel, model_path, read_model
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.file_digests import digest_of

__all__ = ["PATHS", "fixed_options", "own_model", "require_own_config"]

# Fixed by the training: these parts of its config, and everything that they refer to.
_FIXED = ("network_def", "slicer", "preprocessing", "modalities")
_METADATA, _INFERENCE = "configs/metadata.json", "configs/inference.yaml"


def fixed_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a training's config that inference, evaluation and calibration share."""
    fixed = {key: deepcopy(config[key]) for key in with_references(config, _FIXED)}
    encoder = fixed.get("network_def", {}).get("network", {}).get("encoder", {})
    if "weights" in encoder:  # the weights are in the model's checkpoint
        encoder["weights"] = "checkpoint"
        fixed.pop("encoder_weights", None)
    return fixed


def own_model(folder: str, given: GivenConfig | None) -> str:
    """Return the path of a bundle's model for a run; raises the errors of `require_own_config`."""
    require_own_config(folder, given)
    return str(model_path(folder))


def require_own_config(folder: str | Path, given: GivenConfig | None) -> StoredModel:
    """Raise an error for a bundle whose parts do not belong together, or options that differ from its training's.

    Args:
        folder: folder of the bundle.
        given: config of the run; not compared if None.

    Returns:
        The content of its model.pt.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model is not the one that the bundle was written with; an option is unknown, or is fixed by the
            training and was given another value.
    """
    path, metadata, inference = model_path(folder), Path(folder, _METADATA), Path(folder, _INFERENCE)
    stored = read_model(path)
    trained = stored.config
    if missing := [str(file) for file in (metadata, inference) if not file.is_file()]:
        raise FileNotFoundError(f"The bundle in {folder} is not whole: {missing[0]} is missing. Copy the whole folder.")
    if read_config(metadata).get("model_sha256") != digest_of(path):
        raise ValueError(
            f"{path} is not the model that the bundle in {folder} was written with, by the hash in {_METADATA}. Put "
            "the bundle's own model back, or use the whole folder that this model came with."
        )
    fixed, written = fixed_options(trained), with_file_names(read_config(inference))
    _require_trained(inference, written, path, fixed)
    require_unchanged(inference)
    if given is None:
        return stored
    own, content = map(with_file_names, (read_config(given.files[0]), given.content))
    _require_trained(given.files[0], own, path, fixed)
    require_unchanged(given.files[0])
    _refuse_other_parts(folder, {key: own[key] for key in own if key not in fixed}, content)
    # options of the training only, such as those of a preset, may be repeated
    said = [key for key in content if key in trained and key not in own and key not in PATHS]
    fixed |= {key: _counterpart(trained[key], content[key]) for key in said}
    raw = differences(fixed, {key: content.get(key) for key in fixed})
    if found := [each for difference in raw for each in _resolved(difference, trained, {**trained, **content})]:
        raise ValueError(
            f"The training of {folder} has fixed these options: {'; '.join(map(str, found))}. Omit them, or train "
            "again with other values."
        )
    refuse_unknown_keys(content, also_known=[*own, *ids_of(trained)])
    return stored


def _require_trained(file: Path, content: Mapping[str, Any], model: Path, fixed: Mapping[str, Any]) -> None:
    """Raise an error if a config file of a bundle disagrees with its model."""
    if found := [*differences(fixed, {key: content.get(key) for key in fixed})]:
        name, first, second = found[0]
        raise ValueError(
            f"{file} is not the config that {model} was trained with: {name} is {second!r} there, and was {first!r}. "
            "Use the whole folder that the training wrote, unchanged."
        )


def _refuse_other_parts(folder: str | Path, own: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Raise an error if a run replaces a part of the bundle's config that is not an option of a run."""
    found = [name for name, _, _ in differences(own, {key: content.get(key) for key in own})]
    if replaced := [name for name in found if not any(f"{name}#".startswith(f"{free}#") for free in FREE)]:
        free = [name for name in FREE if name.partition("#")[0] in own]
        raise ValueError(
            f"{', '.join(replaced)} of the bundle in {folder} cannot be replaced. Omit this, or train again. "
            f"Options of a run are {', '.join(free)}."
        )


def _counterpart(trained: Any, given: Any) -> Any:
    """Return the part of a trained value that corresponds to a given one: plain sections may be given in part."""
    if isinstance(trained, Mapping) and isinstance(given, Mapping) and "_target_" not in given:
        return {key: _counterpart(trained.get(key), value) for key, value in given.items()}
    return trained


def _resolved(found: Difference, trained: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield the differences after resolving references to options: "@axes" equals the value of axes."""
    yield from differences(
        _without_references(found.first, trained), _without_references(found.second, given), found.name
    )


def _without_references(part: Any, config: Mapping[str, Any]) -> Any:
    if isinstance(part, Mapping):
        return {key: _without_references(value, config) for key, value in part.items()}
    if isinstance(part, list):
        return [_without_references(value, config) for value in part]
    if isinstance(part, str) and part.startswith("@") and part[1:] in config:
        option = config[part[1:]]
        return part if isinstance(option, Mapping) else option
    return part

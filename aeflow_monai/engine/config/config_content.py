"""The content of a config: its keys, its references, and its differences from another config."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

__all__ = [
    "GIVEN",
    "Difference",
    "content_of",
    "differences",
    "ids_of",
    "refuse_unknown_keys",
    "with_file_names",
    "with_references",
]

GIVEN = "given"  # id of the config's own `GivenConfig`
# Ids that MONAI or MONAI Label read by name, so that no other part of the config has to refer to them.
_READ_BY_NAME = {
    *(str(p["id"]) for group in (TrainProperties, InferProperties, MetaProperties) for p in group.values()),
    *("imports", "initialize", "run", "finalize", "prepare", "train::run", "_meta_", GIVEN),
    *("displayable_configs", "post_transforms"),
    *DEFAULT_EXP_MGMT_SETTINGS.get("mlflow", {}).get("configs", {}),
}
# Sections that run as a whole, so a reference to one of them does not count as reading its keys.
_RUN_SECTIONS = {"train", "validate"}


def refuse_unknown_keys(content: Mapping[str, Any], also_known: Iterable[str] = ()) -> None:
    """Raise an error if nothing reads a key of a config, as for a misspelt option.

    MONAI accepts any key. Here each key at the top level, or in a section that is a plain dictionary, has to be
    referred to by another part of the config, or be read by MONAI by name. The arguments of components are checked by
    Python when the component is built.

    Args:
        content: the merged config.
        also_known: ids that are accepted even if nothing reads them; see `ids_of`.

    Raises:
        ValueError: names each such key, and the closest known one.
    """
    known = {*_references(content), *_READ_BY_NAME, *also_known}
    unknown = [key for key in ids_of(content) if not _is_read(key, known)]
    if unknown:
        names = sorted({key.replace("::", "#") for key in known if key})
        described = []

        def is_unknown(name: str) -> bool:
            return any(f"{key}::".startswith(f"{name.replace('#', '::')}::") for key in unknown)

        # name of a component's argument, without the path to it
        short = {name.rpartition("#")[2]: name for name in [*_all_ids(content)][::-1] if not is_unknown(name)}
        full = short | {name: name for name in names}
        for key in unknown:
            written = key.replace("::", "#")
            close = difflib.get_close_matches(written, full, n=1)
            described.append(f"{written!r}" + (f" (did you mean {full[close[0]]!r}?)" if close else ""))
        raise ValueError(
            f"The config has keys that nothing reads: {', '.join(described)}. Check the spelling in the config file or "
            "on the command line."
        )


def ids_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the ids of the keys at the top level and in plain sections; components and lists are leaves."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and "_target_" not in value and value:
            yield from ids_of(value, f"{name}::")
        else:
            yield name


def _all_ids(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the ids of all keys, including arguments of components; outer ones first."""
    if not isinstance(config, Mapping):
        return
    yield from (f"{prefix}{key}" for key in config)
    for key, value in config.items():
        yield from _all_ids(value, f"{prefix}{key}#")


def with_references(content: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Return these top-level keys and all others that they refer to, in the order of the config."""
    wanted: set[str] = set()
    waiting = [key for key in keys if key in content]
    while waiting:
        key = waiting.pop()
        if key not in wanted:
            wanted.add(key)
            found = (ReferenceResolver.split_id(reference)[0] for reference in _references(content[key]))
            waiting += [name for name in found if name in content]
    return [key for key in content if key in wanted]


def with_file_names(config: Any) -> Any:
    """Return a config with file names in place of absolute paths, such as that of the encoder's weights."""
    if isinstance(config, Mapping):
        return {key: with_file_names(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [with_file_names(value) for value in config]
    return Path(config).name if isinstance(config, str) and Path(config).is_absolute() else config


class Difference(NamedTuple):
    """An option with different values in two configs."""

    name: str
    first: Any
    second: Any

    def __str__(self) -> str:
        """Return the message for an option of a training that was given another value."""
        return f"{self.name} (trained with {self.first!r}, given {self.second!r})"


def differences(first: Any, second: Any, name: str = "") -> Iterator[Difference]:
    """Yield the differences between two parts of a config, option by option.

    Example:
        >>> list(differences({"score": {"beta": 0.9}}, {"score": {"beta": 0.5}}))
        [Difference(name='score#beta', first=0.9, second=0.5)]
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in [*first, *(key for key in second if key not in first)]:
            yield from differences(first.get(key), second.get(key), f"{name}#{key}" if name else str(key))
    elif _plain(first) != _plain(second):
        yield Difference(name, _plain(first), _plain(second))


def _plain(value: Any) -> Any:
    """Convert tuples to lists, since Fire and YAML differ in them."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def content_of(parser: ConfigParser) -> dict[str, Any]:
    """Return what a parser has read, with macros resolved, references in their usual form, and nothing instantiated."""
    parser.resolve_macro_and_relative_ids()
    content: dict[str, Any] = _as_written(
        deepcopy({k: v for k, v in parser.get().items() if k != ConfigParser.meta_key})
    )
    if GIVEN in content:
        content[GIVEN] = "$aeflow_monai.engine.given_config()"
    return content


def _as_written(config: Any) -> Any:
    """Write references in their usual form, `@train#slices`, which MONAI has replaced by `@train::slices`."""
    if isinstance(config, dict):
        return {key: _as_written(value) for key, value in config.items()}
    if isinstance(config, list):
        return [_as_written(value) for value in config]
    if isinstance(config, str):
        return re.sub(r"@\w+(?:::\w+)+", lambda found: found[0].replace("::", "#"), config)
    return config


def _references(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _references(value)
    elif isinstance(config, list):
        for value in config:
            yield from _references(value)
    elif isinstance(config, str):
        yield from ReferenceResolver.match_refs_pattern(config)


def _is_read(key: str, known: set[str]) -> bool:
    # a reference to a section reads all keys below it; one into a component or list reads the whole of it
    parents = key.split("::")
    above = {"::".join(parents[: n + 1]) for n in range(len(parents))}
    return bool(above & (known - _RUN_SECTIONS)) or any(k.startswith(f"{key}::") for k in known)

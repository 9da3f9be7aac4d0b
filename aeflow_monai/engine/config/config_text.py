"""Safe reading of config files or metadata.json of unknown origin: the text is checked before it is expanded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent
from yaml.nodes import MappingNode, Node, ScalarNode

__all__ = ["read_config", "read_configs"]

_MAX_BYTES = 2**17  # eight times the longest config; larger files take PyYAML seconds
_MAX_DEPTH = 50
_MAX_VALUES = 100_000
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader if PyYAML was built with it


def read_config(path: str | Path) -> dict[str, Any]:
    r"""Read a config file in YAML or JSON without running anything in it.

    MONAI's reader expands all YAML references (`*name`), which a few lines can make exponentially large.

    Args:
        path: path of the file.

    Returns:
        The file's content.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than a config can be, is nested too deeply, has references that expand to too much, has
            a tag that would create an object, repeats a key, is not YAML or JSON, or holds anything but keys and
            values.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "bomb.yaml")
        >>> _ = path.write_text("a: &a [x, x]\nb: &b [*a, *b]")
        >>> read_config(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: .../bomb.yaml is no config: a reference in it contains itself. Write its values out.
    """
    path = Path(path)
    try:
        content = _read(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no config: {' '.join(str(error).split())}. Mend this line.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is no config: it is nested too deep.") from error
    except OSError:
        raise
    except (TypeError, ValueError) as error:  # TypeError: a list or dictionary as a key
        raise ValueError(f"{path} is no config: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} is no config: expected keys with values, as `epochs: 3`.")
    return content


def read_configs(paths: Iterable[str | Path]) -> dict[str, Any]:
    """Read configs and merge them in order, as MONAI's `ConfigParser.read_config` does.

    Args:
        paths: paths of the files.

    Raises:
        OSError: one cannot be read.
        ValueError: one is not a config, see `read_config`.
    """
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv  # not needed for a single config

    merged = ConfigParser(config={})
    for path in paths:
        for key, value in read_config(path).items():
            merge_kv(merged, key, value)
    content: dict[str, Any] = merged.get()
    return content


def _read(path: Path) -> Any:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has {path.stat().st_size} bytes, and a config at most {_MAX_BYTES}.")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        return json.loads(text, object_pairs_hook=_unique)
    return deepcopy(_of_yaml(text))


@lru_cache(maxsize=16)  # a run reads each of its configs several times, to compare it with others
def _of_yaml(text: str) -> Any:
    _require_shallow(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:  # a preset of comments only
            return {}
        _count(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice.")
    return content


def _require_shallow(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep.")


def _count(node: Node, known: dict[int, int | None]) -> int:
    """Return the number of values in a part of a file, with references expanded."""
    if isinstance(node, ScalarNode):
        return 1
    if id(node) in known:
        if (count := known[id(node)]) is None:
            raise ValueError("a reference in it contains itself. Write its values out.")
        return count
    known[id(node)] = None
    children = node.value
    if isinstance(node, MappingNode):
        _unique([(key.value if isinstance(key, ScalarNode) else str(id(key)), None) for key, _ in node.value])
        children = [child for pair in node.value for child in pair]
    count = 1 + sum(_count(child, known) for child in children)
    if count > _MAX_VALUES:
        raise ValueError(f"its references stand for more than {_MAX_VALUES} values. Write them out.")
    known[id(node)] = count
    return count

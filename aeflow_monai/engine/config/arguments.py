"""Check of the arguments of a config's components against their classes' signatures, before anything is built."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from pydoc import locate
from typing import Any

__all__ = ["refuse_other_kinds", "refuse_unknown_arguments"]

# Modules in which MONAI finds components by their class name alone.
_SHORT = ("monai.transforms", "monai.data", "monai.engines", "monai.handlers", "monai.inferers", "monai.losses")


def refuse_unknown_arguments(content: Mapping[str, Any]) -> None:
    """Raise an error if a component is unknown, lacks an argument, or has one that it does not take.

    Args:
        content: the merged config.

    Raises:
        ValueError: names each such component or argument, and the closest existing argument.

    Example:
        >>> refuse_unknown_arguments({"loss": {"_target_": "aeflow_monai.network.AEFlowLoss", "alhpa": 0.5}})
        Traceback (most recent call last):
        ValueError: AEFlowLoss takes no loss#alhpa (did you mean 'alpha'?). Check the spelling.
    """
    if found := [*_unknown(content, ""), *_lacking(content, "")]:
        raise ValueError(f"{'; '.join(found)}. Check the spelling.")


def refuse_other_kinds(content: Mapping[str, Any], template: Mapping[str, Any]) -> None:
    """Raise an error for a value in place of a component, a section, a list, or a derived value.

    Args:
        content: the merged config.
        template: the config that it is based on; its keys above `bundle_root` are plain options, see `require_options`.

    Raises:
        ValueError: names each such part, with the expected and the given kind.

    Example:
        >>> refuse_other_kinds({"split": []}, {"bundle_root": "$here()", "split": "$split(@normals)"})
        Traceback (most recent call last):
        ValueError: split: expected an expression, as '$split(@normals)'; got []. Omit it.
    """
    names = list(template)
    own = {name: template[name] for name in names[names.index("bundle_root") :]}
    if found := [*_of_other_kind(content, own, "")]:
        raise ValueError("\n".join(found))


def _of_other_kind(given: Mapping[str, Any], template: Mapping[str, Any], above: str) -> Iterator[str]:
    for key, own in template.items():
        name, value = f"{above}{key}", given.get(key, own)
        if isinstance(value, str) and value.startswith(("$", "@")):
            continue
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            yield from _of_other_kind(value, own, f"{name}#")
        elif isinstance(own, Mapping):
            yield f"{name}: expected a section of the config; got {value!r}. Omit it, or give options below it."
        elif isinstance(own, list) and own and isinstance(own[0], Mapping) and not isinstance(value, list):
            yield f"{name}: expected a list of components; got {value!r}. Omit it."
        elif isinstance(own, str) and own.startswith("$") and not above and not isinstance(value, Mapping):
            yield f"{name}: expected an expression, as {own!r}; got {value!r}. Omit it."


def _unknown(part: Any, name: str) -> Iterator[str]:
    below = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, list) else ()
    for key, value in below:
        yield from _unknown(value, f"{name}#{key}" if name else str(key))
    if isinstance(part, Mapping) and (known := _arguments(part.get("_target_"))):
        for key in part:
            if key not in known and not str(key).startswith("_"):
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                yield f"{str(part['_target_']).rpartition('.')[2]} takes no {name}#{key}{hint}"


def _lacking(part: Any, name: str) -> Iterator[str]:
    below = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, list) else ()
    for key, value in below:
        yield from _lacking(value, f"{name}#{key}" if name else str(key))
    if not isinstance(part, Mapping) or "_target_" not in part or {"_mode_", "_disabled_"} & part.keys():
        return
    target = part["_target_"]
    found = _located(target) if isinstance(target, str) else None
    if not isinstance(target, str):
        yield f"{name} names no component, but {target!r}"
    elif isinstance(found, type):
        try:
            parameters = inspect.signature(found).parameters.values()
        except (TypeError, ValueError):  # not written in Python
            return
        named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        needed = [each.name for each in named if each.default is each.empty]
        yield from (f"{target.rpartition('.')[2]} lacks {name}#{each}" for each in needed if each not in part)


def _arguments(target: Any) -> set[str] | None:
    """Return the names of a component's arguments; None if it may take any, or is unknown."""
    found = _located(target) if isinstance(target, str) else None
    if not callable(found):
        return None
    names: set[str] = set()
    # a class with **kwargs also takes the arguments of its base class
    above = (
        [vars(one)["__init__"] for one in inspect.getmro(found) if "__init__" in vars(one)]
        if isinstance(found, type)
        else []
    )
    for function in above or [found]:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # not written in Python
            return None
        names |= {each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            return names
    return None


def _located(target: str) -> Any:
    if "." in target:
        return locate(target)
    modules = map(importlib.import_module, _SHORT)
    return next((getattr(module, target) for module in modules if hasattr(module, target)), None)

"""The command line `python -m monai.bundle run ...`: what was typed, and how MONAI reads it."""

from __future__ import annotations

import ast
import difflib
import inspect
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fire
from monai.bundle import ConfigParser, update_kwargs
from monai.bundle.scripts import run, run_workflow
from monai.utils import ensure_tuple

from aeflow_monai.engine.config.config_content import content_of
from aeflow_monai.engine.config.failure_message import end_with_one_message
from aeflow_monai.engine.config.option_types import PATHS, expected_of
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.files import user_path

__all__ = ["given_config", "path_of"]

_VERBS = {"run": run, "run_workflow": run_workflow}
# What can be run in a config; any other key would be evaluated without any output.
_RUN_IDS = ("run", "train", "prepare")
# Parts of a run that MONAI allows to replace, and that contain its checks and messages.
_ENDS = {"init_id": "initialize", "final_id": "finalize"}
# Options of MONAI, not of the config.
_OF_MONAI = ("meta_file", "logging_file", "tracking", "workflow_name", "run_id", *_ENDS)
_IS_CODE = ("$", "@", "%")


class _Typed(NamedTuple):
    """An option of a command line as it was typed; the text of one without a value is None."""

    name: str
    text: str | None


def given_config() -> GivenConfig | None:
    """Return config files and options of the command line `python -m monai.bundle run ...`.

    From here on, an error ends this process with one message, see `end_with_one_message`.

    Returns:
        The merged config; None if this process was started in another way.

    Raises:
        ValueError: an option has no value, is None, which MONAI would ignore, or is repeated; there is nothing to run
            by this name; or the run would start without its checks.
    """
    if Path(sys.argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or sys.argv[1] not in _VERBS:
        return None
    end_with_one_message()
    typed = list(_typed_options(sys.argv[2:]))
    _refuse_repeated(typed)
    read = _as_monai_reads(sys.argv[1:])
    paths = {name: path for name, path in _paths_of(typed) if path is not None}
    files = _config_files(read.pop("config_file", ()))
    run_id = str(read.get("run_id", "run"))
    for name, usual in _ENDS.items():
        if read.get(name, usual) != usual:
            raise ValueError(f"--{name} would leave out the checks or messages of a run: omit it.")
    for name in _OF_MONAI:
        read.pop(name, None)
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    _refuse_empty(typed, parser.get())
    _refuse_none({name: value for name, value in read.items() if name not in paths}, typed)
    _require_run_id(run_id, parser.get())
    parser.update({name: value for name, value in read.items() if name not in paths})
    command = shlex.join(["python", "-m", "monai.bundle", *sys.argv[1:]])
    return GivenConfig(files, {**content_of(parser), **paths}, command)


def path_of(given: GivenConfig | None, name: str, value: Any) -> Any:
    """Return the value of an option that is a path, as it was typed.

    MONAI reads `--dataset_dir 2023` as a number, and replaces `#`.

    Args:
        given: config of the run.
        name: name of the option.
        value: value as MONAI reads it.

    Returns:
        The path as text, with `~` expanded to the home folder; None is returned as it is.

    Example:
        >>> path_of(GivenConfig((), {"dataset_dir": "007"}), "dataset_dir", 7)
        '007'
    """
    text = given.content.get(name) if given is not None else None
    if text is None or str(text).startswith(_IS_CODE):
        text = value
    known_otherwise = text is None or str(text).startswith("medmnist:")
    return text if known_otherwise else str(user_path(str(text)))


def _typed_options(arguments: Sequence[str]) -> Iterator[_Typed]:
    """Yield options by Fire's rules: a name and its value, after `=` or a space."""
    own = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    while own:
        argument = own.pop(0)
        if not _is_name(argument):
            continue
        name, equals, text = argument.lstrip("-").partition("=")
        value = text if equals else own.pop(0) if own and not _is_name(own[0]) else None
        yield _Typed(name.replace("-", "_").replace("::", "#"), value or None)


def _is_name(argument: str) -> bool:
    return argument.startswith("--") or (argument[:1] == "-" and argument[1:2].isalpha())


def _as_monai_reads(arguments: list[str]) -> dict[str, Any]:
    """Return options as MONAI and Fire read them, from the command line and from the file of `--args_file`."""
    found: dict[str, Any] = {}

    def reading(verb: Any) -> Any:
        signature = inspect.signature(verb)
        rest = next(name for name, kind in signature.parameters.items() if kind.kind is kind.VAR_KEYWORD)

        def read(*values: Any, **options: Any) -> None:
            given = signature.bind(*values, **options).arguments
            others = given.pop(rest, {})
            named = {name: value for name, value in given.items() if value is not None}
            found.update(update_kwargs(named.pop("args_file", None), ignore_none=False, **named, **others))

        read.__signature__ = signature  # type: ignore[attr-defined]
        return read

    fire.Fire({name: reading(verb) for name, verb in _VERBS.items()}, command=arguments)
    return found


def _refuse_repeated(typed: Sequence[_Typed]) -> None:
    """Raise an error for a repeated option, of which MONAI would take the last."""
    repeated = [name for name, count in Counter(option.name for option in typed).items() if count > 1]
    if repeated:
        values = " and ".join(repr(option.text) for option in typed if option.name == repeated[0])
        raise ValueError(f"--{repeated[0]} is given more than once, as {values}: give it once.")


def _refuse_empty(typed: Sequence[_Typed], config: Mapping[str, Any]) -> None:
    """Raise an error for an option without a value, which Fire reads as True, or False for `--no...`."""
    parser = ConfigParser(dict(config))
    for name, text in typed:
        switch = parser.get(name, parser.get(name.removeprefix("no")))
        if text is None and not isinstance(switch, bool):
            raise ValueError(f"--{name} has no value: expected {expected_of(name) or 'one behind it'}.")


def _refuse_none(read: Mapping[str, Any], typed: Sequence[_Typed]) -> None:
    """Raise an error for an option that is None, which MONAI would ignore."""
    of_command = {option.name for option in typed}
    for name, value in read.items():
        if value is None and name.replace("::", "#") in of_command:
            expected = expected_of(name)
            wanted = f"Expected {expected}; for null" if expected else "For null"
            raise ValueError(
                f"MONAI ignores the option {name} when it is given as None. {wanted}, if it can be that, set it to "
                "null in a second config file."
            )


def _paths_of(typed: Sequence[_Typed]) -> Iterator[tuple[str, str | None]]:
    for name, text in typed:
        if name in PATHS and text is not None:
            if text.startswith(_IS_CODE):
                raise ValueError(
                    f"--{name} is {text!r}: a config takes what begins with {text[0]} for code. For a folder of that "
                    f"name write ./{text}"
                )
            yield name, _unquoted(text)


def _unquoted(text: str) -> str:
    """Return a path without the quotes that it was given for Fire."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            return str(ast.literal_eval(text))
        except (SyntaxError, ValueError):
            return text
    return text


def _config_files(given: Any) -> tuple[Path, ...]:
    """Return the paths from a list or comma-separated text, which MONAI allows."""
    if isinstance(given, str) and not Path(given).is_file() and "," in given:
        given = given.split(",")
    return tuple(Path(str(file)).absolute() for file in ensure_tuple(given))


def _require_run_id(run_id: str, config: Mapping[str, Any]) -> None:
    known = [name for name in _RUN_IDS if name in config]
    if run_id not in known:
        close = difflib.get_close_matches(run_id, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"There is no {run_id!r} to run{hint}: this config has {', '.join(known)}.")

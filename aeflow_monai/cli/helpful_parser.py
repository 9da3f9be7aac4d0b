"""An argument parser whose errors suggest what may have been meant."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from aeflow_monai.cli.standard_streams import lasting
from aeflow_monai.printable import meant

__all__ = ["HelpfulParser", "Once"]

_OF_EVALUATION = ("evaluate", "inference")  # configs that a training merges
_CONFIGS = {
    "predict": ("inference",),
    "evaluate": _OF_EVALUATION,
    "compare": _OF_EVALUATION,
    "calibrate": ("calibrate",),
}


class HelpfulParser(argparse.ArgumentParser):
    """An argument parser that suggests the verb or the option that may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Exit with a message and a suggestion."""
        verb = re.search(r"invalid choice: '(.*?)'", message)
        if hint := meant(verb[1], self._verbs()) if verb else "":
            message += f".{hint}"
        if "-m/--model: expected 2 arguments" in message:
            message += ". Give both behind one -m: -m RUN_A RUN_B"
        super().error(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; an unknown argument is an error of its verb, whose usage is shown."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self._verbs().get(getattr(given, "verb", ""), self)
            options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            hint = parser._hint(options[0]) if options else ""
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{'.' if hint else ''}{hint}")
        return given

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse of older Pythons fails if nobody reads, before it sets the exit code
        super()._print_message(message, lasting(file or sys.stderr))

    def _hint(self, option: str) -> str:
        """Return a suggestion for an unknown option: an option of the config, or a similar one of the command."""
        name = option.lstrip("-").replace("-", "_")
        if "--set" in self._option_string_actions and _is_of_config(name, self.prog.rpartition(" ")[2]):
            return f" An option of the config goes behind --set: --set {name}=VALUE"
        return meant(option, self._option_string_actions)

    def _verbs(self) -> dict[str, HelpfulParser]:
        found = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        return found[0] if found else {}


def _is_of_config(name: str, verb: str) -> bool:
    """Whether the config of a verb has an option of this name, such as `slicer#fit`, that is not a path."""
    from aeflow_monai.engine.config.config_text import read_config
    from aeflow_monai.engine.config.template import known_configs

    known, value = known_configs(), dict[str, Any]()
    for config in _CONFIGS.get(verb, ("train",)):
        value |= read_config(known[config])
    return _has_option(value, name)


def _has_option(value: Any, name: str) -> bool:
    for part in name.split("#"):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    is_code = str(value).startswith(("$", "@", "['$")) and name != "device"
    return not isinstance(value, Mapping) and not is_code and name not in ("dataset_dir", "output_dir")


class Once(argparse.Action):
    """An option that may be given only once; argparse would silently use the last of several."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Store the value."""
        if (before := getattr(namespace, self.dest)) is not None:
            names = "/".join(self.option_strings)
            others = [name for name in parser._option_string_actions if name == f"{self.option_strings[-1]}s"]
            hint = f" Did you mean {others[0]}?" if others else ""
            parser.error(f"argument {names}: given twice, as {before} and as {values}{'.' if hint else ''}{hint}")
        setattr(namespace, self.dest, values)

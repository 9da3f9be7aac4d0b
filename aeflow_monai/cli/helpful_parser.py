"""A parser of command lines whose errors name what may be meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from aeflow_monai.printable import meant

__all__ = ["HelpfulParser", "Once"]

_OF_EVALUATION = ("evaluate", "inference")  # which a training merges
_CONFIGS = {
    "predict": ("inference",),
    "evaluate": _OF_EVALUATION,
    "compare": _OF_EVALUATION,
    "calibrate": ("calibrate",),
}


class HelpfulParser(argparse.ArgumentParser):
    """A parser that names the verb or the option that may be meant."""

    def error(self, message: str) -> NoReturn:
        """End with what is wrong."""
        verb = re.search(r"invalid choice: '(.*?)'", message)
        if hint := meant(verb[1], self._verbs()) if verb else "":
            message += f".{hint}"
        if "-m/--model: expected 2 arguments" in message:
            message += ". Give both behind one -m: -m RUN_A RUN_B"
        super().error(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; what is not known is an error of its verb, whose usage is shown."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self._verbs().get(getattr(given, "verb", ""), self)
            options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            hint = parser._hint(options[0]) if options else ""
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{'.' if hint else ''}{hint}")
        return given

    def _hint(self, option: str) -> str:
        """What may be meant by an unknown option: one of the config, or a known one."""
        name = option.lstrip("-").replace("-", "_")
        if "--set" in self._option_string_actions and _is_of_config(name, self.prog.rpartition(" ")[2]):
            return f" An option of the config goes behind --set: --set {name}=VALUE"
        return meant(option, self._option_string_actions)

    def _verbs(self) -> dict[str, HelpfulParser]:
        found = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        return found[0] if found else {}


def _is_of_config(name: str, verb: str) -> bool:
    """Whether the config of a verb has an option of this name, as `image_size` or `slicer#fit`, that is no path."""
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
    """An option that may stand in a command once: of two the last would count, without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Take the value."""
        if (before := getattr(namespace, self.dest)) is not None:
            names = "/".join(self.option_strings)
            others = [name for name in parser._option_string_actions if name == f"{self.option_strings[-1]}s"]
            hint = f" Did you mean {others[0]}?" if others else ""
            parser.error(f"argument {names}: given twice, as {before} and as {values}{'.' if hint else ''}{hint}")
        setattr(namespace, self.dest, values)

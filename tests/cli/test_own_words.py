"""Whatever a message of the package names, it names as the command takes it."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import aeflow_monai
from aeflow_monai.cli.own_words import in_own_words
from aeflow_monai.cli.parsers import parser

PACKAGE = Path(aeflow_monai.__file__).parent
ELSEWHERE = {"cli", "label"}  # that is not reached by the command's verbs, or speaks for itself


def options_of(command: argparse.ArgumentParser) -> set[str]:
    found = set(command._option_string_actions)
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for verb in action.choices.values() for option in options_of(verb)}
    return found


def texts_of(path: Path) -> Iterator[str]:
    """Texts of a file, but for docstrings and command lines; what is put into them is a word."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "a.pt" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inner:
            text = node.value
        else:
            continue
        if "--config_file" not in text and " " in text:
            yield text


def test_options_in_messages_are_those_of_the_command() -> None:
    known, seen, unknown = options_of(parser()) | {"--raw", "--a"}, 0, []  # of gdcmconv, and of any name
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in ELSEWHERE:
            continue
        for text in texts_of(path):
            said = re.findall(r"(?<![\w-])--[a-z][\w-]*", in_own_words(text))
            seen += len(re.findall(r"(?<![\w-])--[a-z]", text))
            unknown += [f"{path.name}: {in_own_words(text)}" for _ in {*said} - known]
    assert not unknown
    assert seen > 30

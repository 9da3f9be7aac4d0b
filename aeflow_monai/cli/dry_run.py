"""Dry runs: report what a run would read, skip and write."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aeflow_monai.cli.bundle_run import options_of, require_sections
from aeflow_monai.cli.given_images import data_of
from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.files import user_path
from aeflow_monai.printable import counted

if TYPE_CHECKING:
    from aeflow_monai.data.datalist.unused import Datalist

__all__ = ["require_usable", "say_images", "say_sections", "say_test", "test_images"]

_SHOWN = 5  # number of paths shown of each kind


def say_sections(given: argparse.Namespace, terminal: Terminal) -> None:
    """Report what a training would read.

    Raises:
        ValueError: the training would be refused.
        CaseFailures: images would fail.
    """
    from aeflow_monai.data.channel_order import require_channel_names
    from aeflow_monai.engine.config.template import config_files
    from aeflow_monai.engine.runs.run_folders import model_folder, require_new
    from aeflow_monai.engine.training.training_setup import report_notes, require_fitting
    from aeflow_monai.engine.verbs import check_training

    folder = model_folder(given.output)
    options = options_of(given, epochs=given.epochs)
    parser, config = _parsed(config_files("train", *given.preset), options, given.data, folder)
    check_training(config, folder)
    if not given.resume:
        require_new(folder)
    parser["paths"] = {"dataset_dir": given.data, "output_dir": folder, "resume": None, "cache_dir": None}
    parser.get_parsed_content("imports")
    require_fitting(*map(parser.get_parsed_content, ("network", "slicer")))
    for part in ("preprocessing", "loss", "optimizer"):  # an option may make these fail; nothing is written
        parser.get_parsed_content(part)
    items, (fitted, held_out) = parser.get_parsed_content("normals"), parser.get_parsed_content("split")
    require_channel_names(items, parser.get_parsed_content("channel_names"))
    report_notes(items, config)
    normal = [*fitted, *held_out]
    terminal.result(
        f"would train on {len(fitted)} normal images of {counted(_patients(fitted), 'patient')}; {given.data} is read "
        f"as {items.layout}:"
    )
    _list(fitted, terminal)
    terminal.result(
        f"would set thresholds on {counted(len(held_out), 'held-out normal image')} of "
        f"{counted(_patients(held_out), 'patient')}:"
    )
    _list(held_out, terminal)
    if len(normal) < len(items):
        terminal.result(f"not on {len(items) - len(normal)} abnormal ones")
    terminal.result(f"would write the model to {folder}")
    require_usable(normal)


def say_images(given: argparse.Namespace, images: Sequence[str], terminal: Terminal) -> None:
    """Report what a prediction would read and write.

    Raises:
        ValueError: the prediction would be refused.
        CaseFailures: images would fail.
    """
    from aeflow_monai.data import find_images

    data = data_of(images)
    folder = user_path(given.output).absolute()
    outputs = f"[{given.outputs}]" if given.outputs else None
    parser, config = _checked(given, "inference", options_of(given, outputs=outputs), data, folder)
    items = find_images(data, exclude=folder, **parser.get_parsed_content("listing"))
    _require_free(given, folder, items)
    usable = [item for item in items if "problem" not in item]
    terminal.result(f"would score {counted(len(usable), 'image')}:")
    _list(items, terminal)
    names = config.content["outputs"]
    terminal.result(f"would write {', '.join(names)} of each, and scores.csv, to {folder}")
    require_usable(items)


def test_images(given: argparse.Namespace) -> Datalist:
    """Return the images that an evaluation would read.

    Raises:
        ValueError: the evaluation would be refused.
    """
    from aeflow_monai.engine.evaluation.evaluated_images import load_test
    from aeflow_monai.engine.runs.run_folders import run_folder

    folder = Path(run_folder(given.output, "evaluations"))
    parser, _ = _checked(given, "evaluate", options_of(given), given.data, folder)
    items = load_test(given.data, given.model, parser.get_parsed_content("listing"))
    _require_free(given, folder, items)
    return items


def say_test(given: argparse.Namespace, items: Datalist, terminal: Terminal) -> None:
    """Report what an evaluation would read and write.

    Args:
        given: the parsed command line.
        items: its `test_images`.
        terminal: shows the report.
    """
    from aeflow_monai.engine.runs.run_folders import run_folder

    folder = Path(run_folder(given.output, "evaluations"))
    usable = [item for item in items if "problem" not in item]
    abnormal = sum(bool(item.get("label")) for item in usable)
    with_mask = sum("lesion" in item for item in usable)
    terminal.result(
        f"would evaluate on {counted(len(usable), 'image')}, {abnormal} abnormal, {with_mask} with a mask; "
        f"{given.data} is read as {items.layout}:"
    )
    _list(items, terminal)
    terminal.result(f"would write to {folder if given.output else folder.parent}")


def require_usable(items: Sequence[Mapping[str, Any]]) -> None:
    """Raise an error if images would fail.

    Raises:
        CaseFailures: says how many.
    """
    from aeflow_monai.errors import CaseFailures

    n_useless = sum("problem" in item for item in items)
    if n_useless:
        raise CaseFailures(f"Of {counted(len(items), 'image')} {n_useless} cannot be used:\nMend or remove them.")


def _checked(given: argparse.Namespace, name: str, options: Mapping[str, str], data: str, folder: Path) -> Any:
    """Return parser and config of a model's run, after the checks that could refuse it."""
    from aeflow_monai.engine.verbs import check_scoring

    file = Path(given.model, "configs", f"{name}.yaml")
    parser, config = _parsed([file], options, data, folder)
    check_scoring(config, given.model, data)
    return parser, config


def _require_free(given: argparse.Namespace, folder: Path, items: Sequence[Mapping[str, Any]]) -> None:
    from aeflow_monai.engine.runs.run_folders import is_unfinished, require_free

    require_free(folder, items, given.overwrite or is_unfinished(folder))


def _parsed(configs: Sequence[str | Path], options: Mapping[str, str], data: str, folder: str | Path) -> Any:
    """Return parser and config of a run, with options parsed as by MONAI's command line."""
    from aeflow_monai.engine.config.run_config import open_config

    require_sections(configs, options)
    return open_config(configs, options, data, folder)


def _patients(items: Sequence[Mapping[str, Any]]) -> int:
    return len({item["patient"] for item in items})


def _list(items: Sequence[Mapping[str, Any]], terminal: Terminal) -> None:
    usable = [item for item in items if "problem" not in item]
    useless = [item for item in items if "problem" in item]
    for item in items:
        state = {"state": "would fail", "message": item["problem"]} if "problem" in item else {"state": "would run"}
        terminal.line({**state, "case": str(item["case"]), "file": str(item["image"])})
    for item in usable[:_SHOWN]:
        terminal.result(f"  {item['image']}")
    if len(usable) > _SHOWN:
        terminal.result(f"  and {len(usable) - _SHOWN} more")
    if useless:
        terminal.result(f"{len(useless)} cannot be used:")
    for item in useless[:_SHOWN]:
        terminal.result(f"  {item['problem']}")
    if len(useless) > _SHOWN:
        terminal.result(f"  and {len(useless) - _SHOWN} more")

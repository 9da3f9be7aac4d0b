"""What a run would read, skip and write, without running it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aeflow_monai.cli.bundle_run import options_of
from aeflow_monai.cli.result_tables import data_of
from aeflow_monai.cli.terminal import Terminal

__all__ = ["say_images", "say_sections", "say_test"]

_SHOWN = 5  # paths of each kind


def say_sections(given: argparse.Namespace, terminal: Terminal) -> None:
    """What a training would read."""
    from aeflow_monai.data import load_datalist
    from aeflow_monai.engine.config import config_files

    parser = _parsed(config_files("train", *given.preset), options_of(given, epochs=given.epochs))
    items = load_datalist(given.data, "train", **parser.get_parsed_content("listing"))
    normal = [item for item in items if not item.get("label")]
    terminal.result(f"would train on {len(normal)} normal images of {_patients(normal)} patients:")
    _list(normal, terminal)
    if len(normal) < len(items):
        terminal.result(f"not on {len(items) - len(normal)} abnormal ones, but where their masks tell normal slices")
    terminal.result(f"would write the model to {Path(given.output).absolute()}")


def say_images(given: argparse.Namespace, images: Sequence[str], terminal: Terminal) -> None:
    """What a prediction would read and write."""
    from aeflow_monai.data import find_images

    parser = _parsed([Path(given.model, "configs", "inference.yaml")], options_of(given))
    folder = Path(given.output).expanduser().absolute()
    items = find_images(data_of(images), exclude=folder, **parser.get_parsed_content("listing"))
    terminal.result(f"would score {len(items)} images:")
    _list(items, terminal)
    names = given.outputs.split(",") if given.outputs else parser.get_parsed_content("outputs")
    terminal.result(f"would write {', '.join(names)} of each, and scores.csv, to {folder}")


def say_test(given: argparse.Namespace, terminal: Terminal) -> None:
    """What an evaluation would read."""
    from aeflow_monai.data import load_datalist

    parser = _parsed([Path(given.model, "configs", "evaluate.yaml")], options_of(given))
    items = load_datalist(given.data, "test", **parser.get_parsed_content("listing"))
    abnormal = sum(bool(item.get("label")) for item in items)
    with_mask = sum("lesion" in item for item in items)
    terminal.result(f"would evaluate on {len(items)} images, {abnormal} abnormal, {with_mask} with a mask:")
    _list(items, terminal)


def _parsed(configs: Sequence[str | Path], options: Mapping[str, str]) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(config) for config in configs])
    parser.update(dict(options))
    return parser


def _patients(items: Sequence[Mapping[str, Any]]) -> int:
    return len({item["patient"] for item in items})


def _list(items: Sequence[Mapping[str, Any]], terminal: Terminal) -> None:
    for item in items[:_SHOWN]:
        terminal.result(f"  {item['image']}")
    if len(items) > _SHOWN:
        terminal.result(f"  and {len(items) - _SHOWN} more")
    for item in [item for item in items if "problem" in item][:_SHOWN]:
        terminal.result(f"  cannot be used: {item['problem']}")

"""`aeflow predict`, `evaluate` and `report`: scores, maps and reports of a trained model."""

from __future__ import annotations

import argparse
import codecs
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from aeflow_monai.cli.bundle_run import options_of, run_bundle
from aeflow_monai.cli.dry_run import require_usable, say_images, say_test, test_images
from aeflow_monai.cli.given_images import data_of
from aeflow_monai.cli.given_paths import require_data, require_model
from aeflow_monai.cli.sharded import is_of_archive, predict_shard, report_shards
from aeflow_monai.cli.summary import sum_up
from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.files import user_path
from aeflow_monai.result_files import SCORES, unfinished_name
from aeflow_monai.text_encoding import encoding_of

__all__ = ["evaluate", "evaluate_folder", "predict", "predict_images", "report"]


def predict(given: argparse.Namespace, terminal: Terminal) -> None:
    """Score images, and write their maps.

    Raises:
        ValueError: an argument or option is invalid.
        CaseFailures: some cases failed.
    """
    require_model(given.model, "inference")
    if is_of_archive(given):
        require_data([path for path in given.images if path != "-"])
        predict_shard(given, terminal)
        return
    images = _paths(given.images)
    if len(images) == 1:  # of several images the others are still processed
        require_data(images)
    if given.dry_run:
        say_images(given, images, terminal)
        return
    outputs = f"[{given.outputs}]" if given.outputs else None
    options = options_of(given, outputs=outputs, overwrite=True if given.overwrite else None)
    predict_images(Path(given.model), images, Path(given.output), options, terminal)
    terminal.say(f"Next: look at {shlex.quote(str(Path(given.output) / 'report.html'))} in a browser.")


def evaluate(given: argparse.Namespace, terminal: Terminal) -> None:
    """Evaluate a model's scores against labels.

    Raises:
        ValueError: an argument or option is invalid.
        CaseFailures: some cases failed.
    """
    require_model(given.model, "evaluate")
    require_data([given.data])
    if given.dry_run:
        items = test_images(given)
        say_test(given, items, terminal)
        require_usable(items)
        return
    options = options_of(given, overwrite=True if given.overwrite else None)
    terminal.say(f"Evaluating {given.model} on {given.data}.")
    from aeflow_monai.engine.runs.run_folders import run_folder

    folder = Path(run_folder(given.output, "evaluations"))
    evaluate_folder(Path(given.model), given.data, folder, options, terminal)
    terminal.say(f"Next: look at {shlex.quote(str(folder / 'report.html'))} in a browser.")


def report(given: argparse.Namespace, terminal: Terminal) -> None:
    """Write report.html again; for shards the tables too.

    Raises:
        FileNotFoundError: there are no results.
        CaseFailures: studies of shards failed, or are open.
    """
    from aeflow_monai.archive import is_sharded
    from aeflow_monai.output.report import write_report

    folder = user_path(given.folder).absolute()
    if is_sharded(folder):
        report_shards(folder, terminal)
        return
    terminal.result(f"report: {write_report(folder)}")


def predict_images(
    model: Path, images: Sequence[str], folder: Path, options: Mapping[str, str], terminal: Terminal
) -> None:
    """Score images, and print a summary.

    Args:
        model: folder of a training.
        images: paths of files, or of one folder.
        folder: output folder of the maps and tables.
        options: further options of the config.
        terminal: shows the summary.

    Raises:
        CaseFailures: some cases failed.
    """
    terminal.say(f"Scoring {images[0] if len(images) == 1 else f'{len(images)} images'} with {model}.")
    folder = user_path(folder).absolute()
    _run(model, "inference", data_of(images), folder, options, terminal)


def evaluate_folder(
    model: Path, data: str | Path, folder: Path, options: Mapping[str, str], terminal: Terminal
) -> None:
    """Evaluate a model, and print a summary; see `predict_images`."""
    _run(model, "evaluate", str(data), user_path(folder).absolute(), options, terminal)


def _run(model: Path, config: str, data: str, folder: Path, options: Mapping[str, str], terminal: Terminal) -> None:
    everything = {"dataset_dir": data, "output_dir": str(folder), **options}
    terminal.when_stopped = terminal.when_stopped or partial(_what_is_kept, folder, terminal.command)
    try:
        run_bundle("run", [model / "configs" / f"{config}.yaml"], everything, folder, terminal)
    except Exception as error:
        from aeflow_monai.errors import CaseFailures, root_cause

        if isinstance(root_cause(error), CaseFailures):
            sum_up(folder, terminal)
        raise
    sum_up(folder, terminal)


def _what_is_kept(folder: Path, command: str) -> str:
    """Return a message on the results that an interrupted run has kept."""
    table = folder / unfinished_name(SCORES)  # its last line may be incomplete
    n_scored = max(0, table.read_bytes().count(b"\n") - 1) if table.is_file() else 0
    kept = f"{n_scored} cases are finished, in {folder}." if n_scored else "No case was finished."
    return f"{kept} Begin again, with all of them, with:\n  {command}"


def _paths(given: Sequence[str]) -> list[str]:
    """Return the unique paths of a command line; `-` stands for those of standard input, one per line."""
    found: list[str] = []
    for path in given:
        found += _lines_of_input() if path == "-" else [path]
    if not found:
        raise ValueError("Expected paths of images, one a line, from the standard input; got none.")
    once = {user_path(path).absolute().resolve(): path for path in reversed(found)}
    return [*once.values()][::-1]


def _lines_of_input() -> list[str]:
    """Return the non-blank lines of standard input; file names need not be UTF-8."""
    if sys.stdin is None:  # closed by the caller
        return []
    content = sys.stdin.buffer.read()
    if (encoding := encoding_of(content, "the standard input")) != "utf-8-sig":
        content = content.decode(encoding, "backslashreplace").encode()
    content = content.removeprefix(codecs.BOM_UTF8)
    return [os.fsdecode(line.strip()) for line in content.splitlines() if line.strip()]

"""`aeflow train`, `demo`, `calibrate` and `prepare`: make models, or prepare data for training."""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from pathlib import Path

from aeflow_monai.cli.bundle_run import options_of, run_bundle
from aeflow_monai.cli.dry_run import say_sections
from aeflow_monai.cli.given_paths import require_data, require_model
from aeflow_monai.cli.scoring import evaluate_folder, predict_images
from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.files import home, user_path
from aeflow_monai.printable import counted
from aeflow_monai.result_files import SCORES
from aeflow_monai.result_tables import rows_of

__all__ = ["calibrate", "demo", "prepare", "train"]


def train(given: argparse.Namespace, terminal: Terminal) -> None:
    """Train a model.

    Raises:
        ValueError: an argument or option is invalid.
    """
    require_data([given.data])
    if given.dry_run:
        say_sections(given, terminal)
        return
    terminal.say(f"Training on {given.data}. The model goes to {given.output}.")
    folder = user_path(given.output).absolute()
    again = shlex.join(["aeflow", "train", given.data, "-o", given.output, "--resume"])
    terminal.when_stopped = partial(_how_to_go_on, folder, again, terminal.command)
    configs = _train_configs(given.preset)
    options = options_of(given, dataset_dir=given.data, output_dir=folder, epochs=given.epochs)
    if given.resume:
        configs, checkpoint = _resumed(folder, given.preset)
        options = options_of(given, dataset_dir=given.data, epochs=given.epochs, resume=checkpoint)
    run_bundle("train", configs, options, folder, terminal)
    terminal.when_stopped = None
    terminal.result(f"model: {folder}")
    terminal.result(f"model card: {folder / 'docs' / 'README.md'}")
    # listing the test images would require reading the data again, which takes minutes for DICOM
    rest = shlex.join(["aeflow", "evaluate", given.data, "-m", given.output])
    terminal.say(f"Next, if the data has a test split: {rest}")


def demo(given: argparse.Namespace, terminal: Terminal) -> None:
    """Train, evaluate and predict on the embedded volumes.

    Raises:
        ValueError: the folder holds other data.
    """
    terminal.say(f"Training on synthetic volumes with and without lesions, {home('phantom')}.")
    from aeflow_monai.data import write_phantom
    from aeflow_monai.engine.config.stored_model import model_path
    from aeflow_monai.engine.runs.run_folders import run_folder

    folder = Path(run_folder(given.output, "demos"))
    model = folder / "model"
    again = shlex.join(["aeflow", "train", home("phantom"), "-o", str(model), "--resume"])
    if _checkpoints(model) and not model_path(model).is_file():
        raise ValueError(f"{folder} holds an interrupted demo. Delete it, or go on with its training with: {again}")
    data = write_phantom(home("phantom"))
    terminal.when_stopped = partial(_how_to_go_on, model, again, terminal.command)
    options = options_of(given, dataset_dir=data, output_dir=model, epochs=given.epochs)
    run_bundle("train", _train_configs([]), options, model, terminal)
    rest = shlex.join(["aeflow", "evaluate", str(data), "-m", str(model), "-o", str(folder / "evaluation")])
    terminal.when_stopped = lambda: f"The model is kept, in {model}. Go on with:\n  {rest} --overwrite"
    terminal.say(f"Evaluating {model} on {data}.")
    evaluate_folder(model, data, folder / "evaluation", {}, terminal)
    scored = rows_of(folder / "evaluation" / SCORES)
    highest = max(scored, key=lambda row: float(row["anomaly_score"]))
    predict_images(model, [highest["file"]], folder / "maps", {}, terminal)
    terminal.say(f"Next: look at {shlex.quote(str(folder / 'evaluation' / 'report.html'))} in a browser.")


def calibrate(given: argparse.Namespace, terminal: Terminal) -> None:
    """Calibrate a model on normals of another site.

    Raises:
        ValueError: an argument or option is invalid.
    """
    require_model(given.model, "calibrate")
    require_data([given.data])
    terminal.say(f"Calibrating {given.model} on {given.data}.")
    folder = user_path(given.output).absolute()
    options = options_of(given, dataset_dir=given.data, output_dir=folder, specificity=given.specificity)
    run_bundle("run", [Path(given.model, "configs", "calibrate.yaml")], options, folder, terminal)
    terminal.result(f"model: {folder}")
    (before, _), (now, n_patients) = map(_case_threshold, (given.model, folder))
    terminal.result(
        f"case threshold: {before:.2f} before, {now:.2f} now, from normals of {counted(n_patients, 'patient')}. Scores "
        "are in units of these normals: do not compare them with those of the model before."
    )
    terminal.say(f"Next: {shlex.join(['aeflow', 'predict', 'SCANS', '-m', given.output, '-o', 'maps'])}")


def prepare(given: argparse.Namespace, terminal: Terminal) -> None:
    """Read a data set once, and write a datalist.

    Raises:
        ValueError: an argument or option is invalid.
    """
    require_data([given.data])
    terminal.say(f"Reading {given.data}.")
    folder = user_path(given.output).absolute()
    options = options_of(given, dataset_dir=given.data, output_dir=folder)
    run_bundle("prepare", _train_configs(given.preset), options, folder, terminal, show_printed=True)
    presets = [text for name in given.preset for text in ("--preset", name)]
    terminal.say(f"Next: {shlex.join(['aeflow', 'train', str(folder / 'dataset.json'), *presets, '-o', 'RUN'])}")


def _case_threshold(model: str | Path) -> tuple[float, int]:
    """Return the case threshold of a model, and the number of patients that it was fitted on."""
    from aeflow_monai.engine.config.stored_model import model_path, read_model

    state = read_model(model_path(model)).state
    return float(state["score.case_threshold"]), int(state["score.case_rank"][1])


def _train_configs(presets: list[str]) -> list[str]:
    from aeflow_monai.engine.config.template import config_files

    return config_files("train", *presets)


def _resumed(folder: Path, presets: list[str]) -> tuple[list[str], Path]:
    """Return config and newest checkpoint of an interrupted training."""
    if presets:
        raise ValueError(f"--resume takes the presets of the interrupted training; leave --preset {presets[0]} away.")
    found = _checkpoints(folder)
    if not found:
        raise ValueError(
            f"There is no checkpoint in {folder / 'logs' / 'checkpoints'} to go on from. Leave --resume away to begin "
            "a training, or give the folder of the interrupted one with -o."
        )
    return [str(folder / "configs" / "train.yaml")], found[-1]


def _how_to_go_on(folder: Path, again: str, command: str) -> str:
    """Return a message on how to resume an interrupted training."""
    found = _checkpoints(folder)
    if not found:
        return f"No epoch was finished, and nothing is kept. Begin again with:\n  {command}"
    return f"{found[-1]} is kept. Go on with:\n  {again}"


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a training, the newest last."""
    return sorted((folder / "logs" / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime)

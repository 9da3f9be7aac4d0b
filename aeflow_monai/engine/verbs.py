"""Begin and end of each verb's run, apart from building its config, one function for each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.utils import set_determinism

from aeflow_monai.about import DISCLAIMER
from aeflow_monai.data.datalist.layouts import existing
from aeflow_monai.engine.config.arguments import refuse_other_kinds, refuse_unknown_arguments
from aeflow_monai.engine.config.command_line import path_of
from aeflow_monai.engine.config.config_content import ids_of, refuse_unknown_keys
from aeflow_monai.engine.config.config_text import read_config
from aeflow_monai.engine.config.failure_message import end_with_one_message
from aeflow_monai.engine.config.fixed_options import require_own_config
from aeflow_monai.engine.config.option_types import require_options
from aeflow_monai.engine.config.stored_model import model_path
from aeflow_monai.engine.config.template import config_files, require_order
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.inference.allocator import keep_freed_memory
from aeflow_monai.engine.inference.runtimes import require_runtime
from aeflow_monai.engine.runs.output_place import require_writable
from aeflow_monai.engine.runs.run_folders import begin_bundle, begin_cache
from aeflow_monai.engine.training.checkpoints import require_same_options
from aeflow_monai.files import home, user_path
from aeflow_monai.launch import is_first_process
from aeflow_monai.locks import release_all
from aeflow_monai.result_files import LOCALISATION, METRICS, REPORT, SCORES

__all__ = [
    "announce",
    "announce_results",
    "begin_calibration",
    "begin_scoring",
    "begin_training",
    "cache_folder",
    "check_scoring",
    "check_training",
    "claim_training",
    "end_training",
]

_NO_DATA = "Say where the images are with --dataset_dir <folder>."


def begin_training(given: GivenConfig | None, folder: str, seed: int) -> None:
    """Begin a training: check its options, log seed and folder, make it deterministic.

    Args:
        given: config of the run, which the training writes into its bundle.
        folder: folder of the bundle.
        seed: seed of all random numbers.

    Raises:
        OSError: the data are missing or cannot be read, or a folder is not writable.
        ValueError: an option is unknown or has a wrong type; no data were given; a resumed training has other options;
            or the config is unknown, since the training was started from Python by MONAI's own `ConfigWorkflow`.
    """
    if given is None:
        raise ValueError(
            "A training started from Python has to know its config, which it writes into its bundle: use "
            "aeflow_monai.Workflow in place of monai.bundle.ConfigWorkflow."
        )
    check_training(given, folder)
    _end_with_one_message(given, folder)
    keep_freed_memory()
    dataset_dir = given.content.get("dataset_dir")
    embedded = str(dataset_dir).startswith("$aeflow_monai.")
    print(f"data: {'the embedded, synthetic volumes' if embedded else dataset_dir}")
    print(f"seed: {seed}\noutput folder: {folder}", flush=True)
    set_determinism(seed=seed)


def check_training(given: GivenConfig, folder: str) -> None:
    """Check options, data and folders of a training; nothing is written.

    Args:
        given: config of the run.
        folder: folder of the bundle.

    Raises:
        OSError: see `begin_training`.
        ValueError: see `begin_training`.
    """
    require_order(given.files)
    # a preset may leave an option of train.yaml unused
    template = read_config(*config_files("train"))
    refuse_unknown_keys(given.content, also_known=ids_of(template))
    refuse_other_kinds(given.content, template)
    refuse_unknown_arguments(given.content)
    require_options(given.content)
    _require_data(given.content.get("dataset_dir"), folder)
    require_writable(folder, "output_dir")
    if (cache_dir := path_of(given, "cache_dir", given.content.get("cache_dir"))) is not None:
        require_writable(cache_dir, "cache_dir")
    if (resume := path_of(given, "resume", given.content.get("resume"))) is not None:
        require_same_options(given, resume)


def claim_training(given: GivenConfig, folder: str) -> None:
    """Create and claim the folders of a training, once its options have been checked.

    Args:
        given: config of the run.
        folder: folder of the bundle.

    Raises:
        FolderInUse: another run writes there.
        ValueError: see `begin_bundle`.
    """
    if is_first_process():
        begin_bundle(folder, path_of(given, "resume", given.content.get("resume")))
        if (cache_dir := path_of(given, "cache_dir", given.content.get("cache_dir"))) is not None:
            begin_cache(cache_dir)


def end_training(folder: str) -> None:
    """End a training: log the folder of its bundle; `run prepare` writes none and logs nothing."""
    release_all()
    if model_path(folder).is_file():
        announce(bundle=folder, model_card=str(Path(folder, "docs", "README.md")))


def begin_scoring(given: GivenConfig | None, folder: str, dataset_dir: str | None) -> None:
    """Begin a run that uses a trained model: check that bundle, options and data exist and belong together.

    Args:
        given: config of the run.
        folder: folder of the bundle.
        dataset_dir: folder of images, or one image file.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: see `require_own_config`; no data were given; an output has an unknown name; outputs would be
            written among the images; or the config is unknown, since the run was started by MONAI's own
            `ConfigWorkflow`.
    """
    if given is None:
        raise ValueError(
            "A run started from Python has to know its config, to compare it with the training's: use "
            "aeflow_monai.Workflow in place of monai.bundle.ConfigWorkflow, or aeflow_monai.predict."
        )
    check_scoring(given, folder, dataset_dir)
    _end_with_one_message(given, path_of(given, "output_dir", given.content.get("output_dir")))
    keep_freed_memory(up_to=2**26)  # few slices are processed at a time, and images may be large


def check_scoring(given: GivenConfig, folder: str, dataset_dir: str | None) -> None:
    """Check bundle, options, data and folder of a run that uses a trained model; nothing is written.

    Args:
        given: config of the run.
        folder: folder of the bundle.
        dataset_dir: folder of images, or one image file.

    Raises:
        FileNotFoundError: see `begin_scoring`.
        ValueError: see `begin_scoring`.
    """
    require_order(given.files)
    require_own_config(folder, given)
    require_options(given.content)
    require_runtime(given.content.get("runtime", "torch"))
    output_dir = path_of(given, "output_dir", given.content.get("output_dir"))
    _require_data(dataset_dir, output_dir)
    if output_dir is not None and user_path(output_dir).resolve() == user_path(folder).resolve():
        raise ValueError(
            f"output_dir is the folder of the model, {folder}: results would lie among its files. Give another folder "
            "with --output_dir."
        )
    require_writable(home() if output_dir is None else output_dir, "output_dir")


def begin_calibration(given: GivenConfig | None, folder: str, dataset_dir: str | None, output_dir: str | None) -> None:
    """Begin a calibration of a trained model on normals of another site; see `begin_scoring`.

    Args:
        given: config of the run.
        folder: folder of the model's bundle.
        dataset_dir: folder or list of normal images.
        output_dir: folder of the new bundle.

    Raises:
        ValueError: see `begin_scoring`; or no folder for the new bundle was given.
    """
    begin_scoring(given, folder, dataset_dir)
    if output_dir is None:
        raise ValueError("Name a folder for the calibrated model with --output_dir.")
    begin_bundle(output_dir)


def announce_results(folder: str) -> None:
    """Print the paths of the results of an evaluation."""
    names = {"metrics": METRICS, "localisation": LOCALISATION, "scores": SCORES}
    names["report"] = REPORT
    announce(**{name: str(Path(folder, file)) for name, file in names.items()})


def announce(**places: str) -> None:
    """Print the paths of the results of a run; one line for each name and path that exists."""
    for name, place in places.items():
        if Path(place).exists():
            print(f"{name.replace('_', ' ')}: {Path(place).absolute()}")
    print(DISCLAIMER)


def cache_folder(cache_dir: str | None, *parts: str) -> str | None:
    """Return a folder for a part of a training's file cache; None, to cache in memory, without a `cache_dir`.

    Example:
        >>> cache_folder("cache", "train"), cache_folder(None, "train")
        ('cache/train', None)
    """
    return None if cache_dir is None else str(Path(cache_dir, *parts))


def _require_data(dataset_dir: Any, output_dir: str | None) -> None:
    """Raise an error for data that are not given, missing, empty or not readable, or that would contain the results."""
    if dataset_dir is None:
        raise ValueError(_NO_DATA)
    if str(dataset_dir).startswith(("$", "@", "medmnist:")):
        return
    path = existing(str(dataset_dir))
    with path.open("rb") if path.is_file() else os.scandir(path) as entries:  # raises an error if access is denied
        if path.is_dir() and next(entries, None) is None:
            raise ValueError(f"dataset_dir: expected a folder of images; got an empty one, {path}.")
    if output_dir is not None and user_path(output_dir).resolve() == path.resolve():
        raise ValueError(
            f"output_dir is the folder of the images, {dataset_dir}: what is written there would be taken for images "
            "by the next run. Give another folder with --output_dir."
        )


def _end_with_one_message(given: GivenConfig, output_dir: str | None) -> None:
    if given.command:  # a run started from Python gets the error itself
        end_with_one_message(output_dir)

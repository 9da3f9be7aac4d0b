"""What a run does besides building its config: one plain function for the begin and the end of each verb."""

from __future__ import annotations

import atexit
import math
import sys
from pathlib import Path

from monai.bundle import ConfigParser
from monai.utils import set_determinism

from aeflow_monai.about import DISCLAIMER
from aeflow_monai.engine.allocator import keep_freed_memory
from aeflow_monai.engine.config import GivenConfig, config_files, ids_of, refuse_unknown_keys
from aeflow_monai.engine.fixed_options import require_own_config
from aeflow_monai.engine.run_folders import begin_bundle, begin_cache, is_first_process
from aeflow_monai.engine.stored_model import model_path
from aeflow_monai.errors import root_cause
from aeflow_monai.locks import release_all
from aeflow_monai.output.maps import OUTPUTS

__all__ = [
    "announce",
    "announce_results",
    "begin_calibration",
    "begin_scoring",
    "begin_training",
    "cache_folder",
    "end_training",
    "lesion_copies",
    "number_of_epochs",
]

_NO_DATA = "Say where the images are with --dataset_dir <folder>."


def begin_training(given: GivenConfig | None, folder: str, seed: int) -> None:
    """Begin a training: check its options, say seed and folder, make it deterministic.

    Args:
        given: config of the run; the training writes it into its bundle.
        folder: of the bundle.
        seed: of all that is random.

    Raises:
        ValueError: an option that nothing reads; no data were named; or the config is not known, since the training was
            started from Python by MONAI's own `ConfigWorkflow`.
    """
    if given is None:
        raise ValueError(
            "A training started from Python has to know its config, which it writes into its bundle: use "
            "aeflow_monai.Workflow in place of monai.bundle.ConfigWorkflow."
        )
    _explain_errors_at_the_end(given)
    # a preset may leave an option of train.yaml without use
    refuse_unknown_keys(given.content, also_known=ids_of(ConfigParser.load_config_file(*config_files("train"))))
    dataset_dir = given.content.get("dataset_dir")
    if dataset_dir is None:
        raise ValueError(_NO_DATA)
    _require_other_folder(folder, dataset_dir)
    if is_first_process():
        begin_bundle(folder, resume=given.content.get("resume") is not None)
        if cache_dir := given.content.get("cache_dir"):
            begin_cache(cache_dir)
    keep_freed_memory()
    embedded = str(dataset_dir).startswith("$aeflow_monai.")
    print(f"data: {'the embedded, synthetic volumes' if embedded else dataset_dir}")
    print(f"seed: {seed}\noutput folder: {folder}", flush=True)
    set_determinism(seed=seed)


def end_training(folder: str) -> None:
    """End a training: say where its bundle lies; of `run prepare`, which writes none, nothing more."""
    release_all()
    if model_path(folder).is_file():
        announce(bundle=folder, model_card=str(Path(folder, "docs", "README.md")))


def begin_scoring(given: GivenConfig | None, folder: str, dataset_dir: str | None) -> None:
    """Begin a run that uses a trained model: check that bundle, options and data are there and belong together.

    Args:
        given: config of the run.
        folder: of the bundle.
        dataset_dir: folder of images, or one image file.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: see `require_own_config`; no data were named; an output has an unknown name; outputs would lie among
            the images; or the config is not known, since the run was started by MONAI's own `ConfigWorkflow`.
    """
    if given is None:
        raise ValueError(
            "A run started from Python has to know its config, to compare it with the training's: use "
            "aeflow_monai.Workflow in place of monai.bundle.ConfigWorkflow, or aeflow_monai.predict."
        )
    _explain_errors_at_the_end(given)
    require_own_config(folder, given)
    if dataset_dir is None:
        raise ValueError(_NO_DATA)
    _require_other_folder(given.content.get("output_dir"), dataset_dir)
    outputs = given.content.get("outputs", [])
    if isinstance(outputs, str) or not set(outputs) <= set(OUTPUTS):
        raise ValueError(
            f'outputs is a list of some of {list(OUTPUTS)}; got {outputs!r}; write it as "[anomaly_map,anomaly_mask]".'
        )
    keep_freed_memory()


def begin_calibration(given: GivenConfig | None, folder: str, dataset_dir: str | None, output_dir: str | None) -> None:
    """Begin a calibration of a trained model on normals of another site; see `begin_scoring`.

    Args:
        given: config of the run.
        folder: of the model's bundle.
        dataset_dir: folder or list of normal images.
        output_dir: folder of the new bundle.

    Raises:
        ValueError: also without a folder for the new bundle.
    """
    begin_scoring(given, folder, dataset_dir)
    if output_dir is None:
        raise ValueError("Name a folder for the calibrated model with --output_dir.")
    begin_bundle(output_dir, resume=False)


def announce_results(folder: str) -> None:
    """Print where the results of an evaluation lie."""
    names = {"metrics": "metrics.json", "localisation": "localisation.json", "scores": "scores.csv"}
    announce(**{name: str(Path(folder, file)) for name, file in names.items()})


def announce(**places: str) -> None:
    """Print where the results of a run lie; one line for each name and path that exists."""
    for name, place in places.items():
        if Path(place).exists():
            print(f"{name.replace('_', ' ')}: {Path(place).absolute()}")
    print(DISCLAIMER)


def cache_folder(cache_dir: str | None, *parts: str) -> str | None:
    """Folder for a part of what a training keeps in files; None, for the memory, without a `cache_dir`.

    Example:
        >>> cache_folder("cache", "train"), cache_folder(None, "train")
        ('cache/train', None)
    """
    return None if cache_dir is None else str(Path(cache_dir, *parts))


def number_of_epochs(epochs: int | None, n_slices: int, batch_size: int, min_steps: int = 250) -> int:
    """Epochs of a training: 6, or with few slices as many as give enough batches, up to 200.

    Args:
        epochs: as they were given; None to count them.
        n_slices: normal slices of the training.
        batch_size: of the training.
        min_steps: batches of normal slices, at least.

    Example:
        >>> number_of_epochs(None, 1600, 16), number_of_epochs(None, 80, 16), number_of_epochs(3, 80, 16)
        (6, 50, 3)
    """
    return max(6, min(200, math.ceil(min_steps * batch_size / n_slices))) if epochs is None else epochs


def lesion_copies(copies: int | None, n_slices: int, least: int = 500) -> int:
    """Copies of each training slice with synthetic lesions: 1, or more where slices are few, up to 10.

    Args:
        copies: as they were given; None to count them.
        n_slices: normal slices of the training.
        least: copies with lesions in all, at least.

    Example:
        >>> lesion_copies(None, 1600), lesion_copies(None, 80), lesion_copies(0, 80)
        (1, 7, 0)
    """
    return max(1, min(10, math.ceil(least / n_slices))) if copies is None else copies


def _require_other_folder(output_dir: str | None, dataset_dir: str) -> None:
    if (
        output_dir is not None
        and Path(output_dir).expanduser().resolve() == Path(str(dataset_dir)).expanduser().resolve()
    ):
        raise ValueError(
            f"output_dir is the folder of the images, {dataset_dir}: what is written there would be taken for images "
            "by the next run. Give another folder with --output_dir."
        )


def _explain_errors_at_the_end(given: GivenConfig) -> None:
    """Let a command that fails end with the message of the error that began it, below MONAI's traceback."""
    if not given.command:  # whoever started the run from Python gets the error itself
        return

    def explain() -> None:
        error = getattr(sys, "last_value", None)  # what Python has printed the traceback of
        if isinstance(error, Exception):  # not what the user or the system stopped
            print(f"\nThe run failed: {root_cause(error)}", file=sys.stderr)

    atexit.register(explain)

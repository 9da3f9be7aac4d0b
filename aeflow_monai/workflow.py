"""What a running bundle asks of the package: where it lies, where its outputs go, whether its config makes sense."""

from __future__ import annotations

import ctypes
import difflib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

__all__ = [
    "announce",
    "bundle_root",
    "check_config",
    "describe_error",
    "explain_errors",
    "home",
    "keep_freed_memory",
    "require_checkpoint",
    "require_place",
    "root_cause",
]

_logger = logging.getLogger(__name__)

# Ids that MONAI or MONAI Label read by their name, so that no other part of the config has to refer to them.
_READ_BY_NAME = {
    *(str(p["id"]) for group in (TrainProperties, InferProperties, MetaProperties) for p in group.values()),
    *("imports", "initialize", "run", "finalize", "prepare", "calibrate", "train::run", "_meta_"),
    *("displayable_configs", "post_transforms"),
    *DEFAULT_EXP_MGMT_SETTINGS.get("mlflow", {}).get("configs", {}),
}


def home(*parts: str) -> str:
    """Folder for what has no other place: $AEFLOW_HOME, or ~/.aeflow_monai.

    Args:
        parts: names of folders below it.

    Returns:
        The path. Nothing is created.
    """
    root = os.environ.get("AEFLOW_HOME") or Path.home() / ".aeflow_monai"
    return str(Path(root, *parts).absolute())


def bundle_root() -> str:
    """Root folder of the bundle that is being run.

    It is the parent of the first config file's `configs` folder. Outside of a run (a config that is only parsed) it
    is `bundle` below the working directory if that is a bundle, else the working directory.
    """
    for caller in _callers():
        if isinstance(caller, ConfigWorkflow):
            folder = Path(caller.config_root_path).absolute()
            return str(folder.parent if folder.name == "configs" else folder)
    return "bundle" if Path("bundle/configs/metadata.json").is_file() else "."


def check_config() -> None:
    """Refuse a config with a key that nothing reads, which is what a misspelt key of an overlay or override is.

    MONAI accepts any key. Here a key at the top, or in a section that is a plain dictionary, has to be referred to
    by another part of the config, be read by MONAI by its name, or be an option of another config of this bundle (an
    overlay for training may then be put on the inference config too). Arguments of components are checked by Python
    when the component is built.

    Raises:
        ValueError: names each such key, and the nearest known one.
    """
    parser = next((c.parser if isinstance(c, ConfigWorkflow) else c for c in _callers()), None)
    if parser is None:
        raise RuntimeError("check_config works inside of a bundle's `initialize` section only.")
    config = parser.get()
    referred = set(_references(config))
    known = referred | _READ_BY_NAME | _options_of_bundle()
    unknown = [key for key in _keys(config) if not _is_read(key, known)]
    if unknown:
        names = sorted({key.replace("::", "#") for key in known if key})
        described = []
        for key in unknown:
            written = key.replace("::", "#")
            close = difflib.get_close_matches(written, names, n=1)
            described.append(f"{written!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        raise ValueError(
            f"The config has keys that nothing reads: {', '.join(described)}. Check the spelling in the overlay file "
            "or on the command line."
        )


def explain_errors() -> None:
    """Let a run that fails end with the message of the error that began it, below MONAI's traceback."""
    previous = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        previous(kind, error, trace)
        if isinstance(error, Exception):  # not what the user or the system stopped
            print(f"\nThe run failed: {root_cause(error)}", file=sys.stderr)

    sys.excepthook = report


def keep_freed_memory() -> None:
    """Let glibc keep the big buffers that a network frees instead of giving each back to the system.

    Activations of tens of megabytes are otherwise mapped, zeroed and unmapped by the kernel for every layer, which
    makes the default encoder three times slower on a CPU (benchmarks/allocator.py). All threads share what is kept:
    each would otherwise have a store of its own. Elsewhere than on glibc nothing is done.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        _logger.debug("no glibc: its allocator is not tuned")
        return
    top_pad, trim_threshold, mmap_threshold, arena_max = -2, -1, -3, -8  # of malloc.h
    if not (mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)):
        _logger.debug("glibc refuses to change its allocator")
        return
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)
    mallopt(arena_max, 1)


def require_checkpoint(path: str) -> None:
    """Refuse to go on without a trained model.

    Raises:
        FileNotFoundError: there is no file at the path.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no trained model at {path}. Train one first (the config train.yaml), or give the place of yours "
            "with --ckpt_path <file> (inference, calibration) or the training's --output_dir (evaluation)."
        )


def require_place(output_dir: str | None, ckpt_path: str) -> None:
    """Refuse to go on without a trained model, or without another folder for the model that is made of it.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the folder is missing, or that of the model.
    """
    require_checkpoint(ckpt_path)
    if output_dir is None or Path(output_dir).resolve() == Path(ckpt_path).resolve().parent:
        raise ValueError(
            f"Name a folder for the new model with --output_dir, another one than that of {ckpt_path}; got "
            f"{output_dir}."
        )


def announce(**places: str) -> None:
    """Print where the results of a run lie; one line for each name and path that exists."""
    for name, place in places.items():
        if Path(place).exists():
            print(f"{name.replace('_', ' ')}: {Path(place).absolute()}")
    print("Research use only. Not a medical device.")


def root_cause(error: BaseException) -> BaseException:
    """The error that MONAI wrapped in others of its own, as it does for transforms and expressions.

    Args:
        error: as it was caught.

    Returns:
        The first error below that MONAI has not raised itself; not deeper, where the message may explain less.
    """
    while (deeper := error.__cause__ or error.__context__) is not None and _is_raised_by_monai(error):
        error = deeper
    return error


def describe_error(error: BaseException) -> str:
    """What an error says, without what MONAI wrapped it in.

    Args:
        error: as it was caught.

    Returns:
        The message of its `root_cause`, with the type before it where the message alone says too little.

    Example:
        >>> describe_error(ValueError("It is empty.")), describe_error(KeyError("image"))
        ('It is empty.', "KeyError: 'image'")
    """
    cause = root_cause(error)
    message, kind = str(cause).strip(), type(cause).__name__
    if message and isinstance(cause, (ValueError, RuntimeError, OSError)):
        return message
    return f"{kind}: {message}" if message else kind


def _is_raised_by_monai(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] == "monai"


def _callers() -> Iterator[ConfigWorkflow | ConfigParser]:
    # MONAI evaluates an expression without handing over the config it stands in, so it is looked up on the stack
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, (ConfigWorkflow, ConfigParser)):
            yield caller
        frame = frame.f_back


def _references(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        for value in config.values():
            yield from _references(value)
    elif isinstance(config, list):
        for value in config:
            yield from _references(value)
    elif isinstance(config, str):
        yield from ReferenceResolver.match_refs_pattern(config)


def _keys(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Ids of the keys at the top and in plain sections; components and lists are leaves."""
    for key, value in config.items():
        if key == ConfigParser.meta_key:
            continue
        name = f"{prefix}{key}"
        if isinstance(value, dict) and "_target_" not in value and value:
            yield from _keys(value, f"{name}::")
        else:
            yield name


def _is_read(key: str, known: set[str]) -> bool:
    # a reference to a section reads all below it, and one into a component or list reads that
    parents = key.split("::")
    above = {"::".join(parents[: n + 1]) for n in range(len(parents))}
    return bool(above & (known - {"train", "validate"})) or any(k.startswith(f"{key}::") for k in known)


def _options_of_bundle() -> set[str]:
    configs = Path(bundle_root()) / "configs"
    files = sorted([*configs.glob("*.yaml"), *configs.glob("*.json")])
    options: set[str] = set()
    for file in files:
        if file.name != "metadata.json":
            content = ConfigParser.load_config_file(file)
            # only what its own file reads: a misspelt key in one of these files is no option
            options |= content.keys() & set(_references(content))
    return options

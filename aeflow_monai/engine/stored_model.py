"""What a model.pt holds, and reading it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["StoredModel", "load_saved", "model_path", "read_model"]


class StoredModel(NamedTuple):
    """What a model.pt holds.

    Attributes:
        state: the detector's state dict.
        config: the training's merged config, without its paths.
        card: what the model card says of data, seed and versions.
    """

    state: Mapping[str, Tensor]
    config: dict[str, Any]
    card: dict[str, Any]


def model_path(folder: str | Path) -> Path:
    """The model of a bundle."""
    return Path(folder, "models", "model.pt")


def read_model(path: str | Path) -> StoredModel:
    """Read a model.pt; nothing in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, cut short, a checkpoint from the middle of a training, or of version 0.1.0.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no trained model at {path}. Train one first, go on with an interrupted training (--resume <a "
            "checkpoint in its folder logs>), or give the folder of a finished one."
        )
    content = load_saved(path, "is no model, or not whole: expected the model.pt that a training ends with.")
    state = content.get("model")
    if not (isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{path} is no model: expected the model.pt that a training ends with.")
    if "config" not in content:
        what = "a checkpoint from the middle of a training" if "trainer" in content else "a model of version 0.1.0"
        raise ValueError(
            f"{path} is {what}, which does not know its preprocessing. "
            + ("Finish the training with --resume." if "trainer" in content else "Train again with this version.")
        )
    text = json.loads(content["config"])
    return StoredModel(state, text["config"], text["card"])


def load_saved(path: str | Path, otherwise: str) -> dict[str, Any]:
    """What a training saved in a file; nothing in it is run.

    Args:
        path: of the file.
        otherwise: what the error says of a file that torch cannot read, behind its path.

    Raises:
        ValueError: torch cannot read it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:  # RuntimeError: cut short
        raise ValueError(f"{path} {otherwise}") from error
    return content if isinstance(content, dict) else {}

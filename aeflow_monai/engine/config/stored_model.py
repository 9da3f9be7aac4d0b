"""Content and reading of a model.pt."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aeflow_monai.files import replacing
from aeflow_monai.printable import some

__all__ = ["StoredModel", "load_saved", "model_path", "not_finite", "read_model", "write_saved"]

# Start of the comment of torch's zip archive, followed by the SHA-256 of everything before the comment.
_HASH = b"aeflow_monai sha256 "
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


class StoredModel(NamedTuple):
    """Content of a model.pt.

    Attributes:
        state: the detector's state dict.
        config: the training's merged config, without paths.
        card: data, seed and versions for the model card.
    """

    state: Mapping[str, Tensor]
    config: dict[str, Any]
    card: dict[str, Any]


def model_path(folder: str | Path) -> Path:
    """Return the path of a bundle's model."""
    return Path(folder, "models", "model.pt")


def read_model(path: str | Path) -> StoredModel:
    """Read a model.pt without executing any code in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another format, is damaged, is of another version, is a checkpoint from the middle of a
            training, or holds NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no trained model at {path}. Train one first, go on with an interrupted training (--resume <a "
            "checkpoint in its folder logs>), or give the folder of a finished one."
        )
    content = load_saved(path, "the model.pt that a training ends with")
    state = content.get("model")
    if not (isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{path} is no model: expected the model.pt that a training ends with.")
    if "config" not in content:
        raise ValueError(
            f"{path} is a checkpoint from the middle of a training, which is not calibrated yet. Finish the training "
            "with --resume."
        )
    if wrong := not_finite(state):
        raise ValueError(
            f"{path} holds NaN or infinite values in {wrong}: no image can be scored with this model. Train again, "
            "with a lower learning_rate."
        )
    try:
        text = json.loads(content["config"])
        return StoredModel(state, dict(text["config"]), dict(text["card"]))
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is no model: what it says of its training is not as a training writes it.") from None


def not_finite(state: Mapping[str, Tensor]) -> str:
    """Return the names of the first tensors with NaN or infinite values, and how many more; empty without any.

    Example:
        >>> not_finite({"mean": torch.zeros(2), "std": torch.tensor([1.0, torch.inf])})
        'std'
    """
    wrong = [name for name, value in state.items() if not value.isfinite().all()]
    return some(wrong, limit=1) if wrong else ""


def write_saved(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a file for `load_saved` atomically, with its hash.

    Args:
        path: path of the file, which torch can read too; missing folders are created.
        content: tensors, numbers, text, and dictionaries and lists of these.

    Raises:
        OSError: the file cannot be written.
    """
    stream = io.BytesIO()
    torch.save(dict(content), stream)
    archive = stream.getvalue()[:-2]  # without the length of its comment, 0
    comment = _HASH + hashlib.sha256(archive).hexdigest().encode()
    with replacing(path) as unfinished:
        unfinished.write_bytes(archive + len(comment).to_bytes(2, "little") + comment)


def load_saved(path: str | Path, expected: str) -> dict[str, Any]:
    """Load a file that a training saved, without executing any code in it.

    Args:
        path: path of the file.
        expected: what the file should be, for the error message.

    Raises:
        ValueError: the file has another format, is damaged, or holds more than numbers and text; the message says
            which.
    """
    data = Path(path).read_bytes()
    if problem := _problem(data):
        raise ValueError(f"Expected {expected} in {path}; got {problem}")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:
        # without the cause, in which torch suggests executing the file's code
        raise ValueError(
            f"Expected {expected} in {path}; got a file with other Python objects than numbers and text, which can be "
            "code. Nothing of it was run. Do not use it, and ask where it comes from."
        ) from None
    return content if isinstance(content, dict) else {}


def _problem(data: bytes) -> str:
    """Return what is wrong with the bytes of a file saved by a training; empty if nothing is."""
    if not data:
        return "an empty file. Copy it again, or take an earlier one."
    if data[:1] == _PICKLE:
        return "a file of Python objects (pickle), which can be code. Nothing of it was run."
    if not data.startswith(_ZIP):
        return f"something else, beginning with {data[:8]!r}. Is it the right file?"
    archive, found, digest = data.rpartition(_HASH)
    if not found or len(digest) != 64 or archive[-2:] != (len(found) + len(digest)).to_bytes(2, "little"):
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return "a file that is cut short. Copy it again, or take an earlier one."
        return "a file of another version of aeflow_monai, or of another program. Train again with this version."
    if hashlib.sha256(archive[:-2]).hexdigest().encode() != digest:
        return "a damaged file: its bytes are not those that were written. Copy it again, or take an earlier one."
    return ""

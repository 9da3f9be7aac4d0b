"""What a model.pt holds, and reading it."""

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

# Begins the comment of the zip archive that torch writes, behind which stands the SHA-256 of all before the comment.
_HASH = b"aeflow_monai sha256 "
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


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
        ValueError: it is something else, damaged, of another version, or a checkpoint from the middle of a training; or
            it holds NaN.
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
    """Names of the first tensors that hold NaN or infinite values, and how many more; empty if there are none.

    Example:
        >>> not_finite({"mean": torch.zeros(2), "std": torch.tensor([1.0, torch.inf])})
        'std'
    """
    wrong = [name for name, value in state.items() if not value.isfinite().all()]
    return some(wrong, limit=1) if wrong else ""


def write_saved(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write what `load_saved` reads, with its hash; whole, or not at all.

    Args:
        path: of the file, which torch can read too; missing folders are made.
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
    """What a training saved in a file; nothing in it is run.

    Args:
        path: of the file.
        expected: what the error says that it should be.

    Raises:
        ValueError: the file is something else, is damaged, or holds more than numbers and text; says which.
    """
    data = Path(path).read_bytes()
    if problem := _problem(data):
        raise ValueError(f"Expected {expected} in {path}; got {problem}")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:
        # without the cause, which advises to run what is in the file
        raise ValueError(
            f"Expected {expected} in {path}; got a file with other Python objects than numbers and text, which can be "
            "code. Nothing of it was run. Do not use it, and ask where it comes from."
        ) from None
    return content if isinstance(content, dict) else {}


def _problem(data: bytes) -> str:
    """What is wrong with the bytes of a file that a training should have saved; nothing if they are as written."""
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

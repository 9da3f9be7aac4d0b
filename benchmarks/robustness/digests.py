"""What files hold, as something short that is equal for equal content, whatever the time at which they were written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aeflow_monai.file_digests import sha256_of

# what differs from run to run: times, process ids, the words of the command
LOGS = ("tfevents", "run.json")


def digest(value: Any) -> Any:
    """Tensors by their bytes, all else as it is."""
    if isinstance(value, torch.Tensor):
        array = np.ascontiguousarray(value.detach().cpu().numpy())
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()[:16]]
    if isinstance(value, Mapping):
        return {str(key): digest(part) for key, part in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, (list, tuple)):
        return [digest(part) for part in value]
    return value if isinstance(value, (str, int, bool, type(None))) else repr(value)


def digest_of_file(path: Path) -> str:
    """Content of a file; of what torch saved the tensors and texts."""
    data = path.read_bytes()
    if path.suffix == ".pt":
        try:
            data = repr(digest(torch.load(path, map_location="cpu", weights_only=True))).encode()
        except Exception as error:
            return f"unreadable: {error!r}"[:100]
    if path.name == "metadata.json":  # whose hash of the model's file is looked at by `model_is_its_own`
        known = json.loads(data)
        data = json.dumps({name: value for name, value in known.items() if name != "model_sha256"}).encode()
    if path.name == "report.html":
        data = re.sub(rb'"started":"[^"]*"', b"", data)
    return hashlib.sha256(data).hexdigest()[:16]


def digests_below(folder: Path) -> dict[str, str]:
    """Content of all files of a folder but logs, by their path below it; empty folders count too."""
    return {
        path.relative_to(folder).as_posix(): digest_of_file(path) if path.is_file() else "a folder"
        for path in sorted(folder.rglob("*"))
        if not any(name in path.name for name in LOGS) and (path.is_file() or not any(path.iterdir()))
    }


def model_is_its_own(bundle: Path) -> bool:
    """Whether the model in a bundle is the one that its metadata.json names; True without a model."""
    model = bundle / "models/model.pt"
    if not model.exists():
        return True
    known = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    return bool(known["model_sha256"] == sha256_of(model))

"""Cache of networks as ONNX models, in aeflow's home folder, for later runs of the same network."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aeflow_monai.about import PACKAGE, versions
from aeflow_monai.files import home, replacing, sweep

__all__ = ["identity_of", "kept_form"]

_logger = logging.getLogger(__name__)

_PARTS = ("geometry.py", "engine/inference", "network", "score")  # code that determines a form
_LIBRARIES = ("aeflow_monai", "torch", "monai", "timm")  # the versions, or the code, of these are part of the name
_KEPT = 16  # forms, of about five megabytes each
_DIGEST = 32  # bytes of the SHA-256 in front of a form


def identity_of(made_of: Any) -> str | None:
    """Hash everything that a form is made of: weights, attributes, this package's code, and versions of libraries.

    Args:
        made_of: modules and numbers.

    Returns:
        A hexadecimal SHA-256; None if a part has no reproducible name that another process would find again.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> identity_of([layer, 64]) == identity_of([layer, 64]), identity_of([layer, 64]) == identity_of([layer, 32])
        (True, False)
    """
    stream = BytesIO()
    try:
        _Named(stream, protocol=4).dump((made_of, {**versions(), "onnx": _version_of_onnx()}, _code()))
    except Exception as error:  # pickling fails with errors of many types
        _logger.debug(f"The form of this network is not kept: {error}")
        return None
    return hashlib.sha256(stream.getvalue()).hexdigest()


def kept_form(identity: str | None, make: Callable[[], bytes]) -> bytes:
    """Return the form of this identity from the cache if it is there and undamaged; otherwise make and cache it.

    Args:
        identity: hash of everything that it is made of, see `identity_of`; if None, the form is made and not cached.
        make: function that makes the form.
    """
    if identity is None:
        return make()
    path = Path(home("forms"), f"{identity}.onnx")
    content = path.read_bytes() if _is_own(path) else b""
    digest, form = content[:_DIGEST], content[_DIGEST:]
    if content and hashlib.sha256(form).digest() == digest:
        with suppress(OSError):  # in a read-only home folder
            path.touch()  # marks it as recently used
        return form
    form = make()
    try:
        with replacing(path) as unfinished:
            unfinished.write_bytes(hashlib.sha256(form).digest() + form)
            unfinished.chmod(0o600)
        _forget_old(path.parent)
    except OSError as error:  # the home folder is full or not writable
        _logger.debug(f"The form of this network is not kept: {error}")
    return form


def _is_own(path: Path) -> bool:
    """Return whether only this user or root could have written a file, since its content determines the scores."""
    if not path.is_file() or not os.access(path, os.R_OK):
        return False
    found = path.stat()
    return os.name == "nt" or (found.st_uid in (os.getuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _forget_old(folder: Path) -> None:
    sweep(folder)
    forms = sorted(folder.glob("[!.]*.onnx"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in forms[_KEPT:]:
        path.unlink(missing_ok=True)


class _Named(pickle.Pickler):
    """Pickler of tensors by content, which pickle refers to by address, and of modules of known code only."""

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, nn.Module) and type(value).__module__.partition(".")[0] not in _LIBRARIES:
            raise pickle.PicklingError(f"{type(value).__qualname__} is of code that has no version here")
        if not isinstance(value, Tensor):
            return None
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(content).hexdigest()


def _version_of_onnx() -> str:
    try:
        return version("onnx")
    except PackageNotFoundError:  # without onnx no form is made
        return ""


@cache
def _code() -> str:
    """Return a hash of the code that makes forms, which may change without a new version."""
    digest = hashlib.sha256()
    for part in (PACKAGE / part for part in _PARTS):
        for file in [part] if part.is_file() else sorted(part.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()

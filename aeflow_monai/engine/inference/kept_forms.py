"""ONNX models of networks, kept in the home folder of aeflow for the next run of the same network."""

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

_PARTS = ("geometry.py", "engine/inference", "network", "score")  # whose code says what a form computes
_LIBRARIES = ("aeflow_monai", "torch", "monai", "timm")  # whose versions, or code, are part of the name
_KEPT = 16  # forms, of about five megabytes each
_DIGEST = 32  # bytes in front of a form, its SHA-256


def identity_of(made_of: Any) -> str | None:
    """Name all that a form is made of: weights, attributes, this package's code, and versions of the libraries.

    Args:
        made_of: modules and numbers.

    Returns:
        A hexadecimal SHA-256; None if something in it has no name that another process would find again.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> identity_of([layer, 64]) == identity_of([layer, 64]), identity_of([layer, 64]) == identity_of([layer, 32])
        (True, False)
    """
    stream = BytesIO()
    try:
        _Named(stream, protocol=4).dump((made_of, {**versions(), "onnx": _version_of_onnx()}, _code()))
    except Exception as error:  # of what cannot be pickled, in many kinds
        _logger.debug(f"The form of this network is not kept: {error}")
        return None
    return hashlib.sha256(stream.getvalue()).hexdigest()


def kept_form(identity: str | None, make: Callable[[], bytes]) -> bytes:
    """The form of this identity: as it is kept, if it is and undamaged; otherwise it is made, and kept.

    Args:
        identity: of all that it is made of, see `identity_of`; if None it is made and not kept.
        make: makes it.
    """
    if identity is None:
        return make()
    path = Path(home("forms"), f"{identity}.onnx")
    content = path.read_bytes() if _is_own(path) else b""
    digest, form = content[:_DIGEST], content[_DIGEST:]
    if content and hashlib.sha256(form).digest() == digest:
        with suppress(OSError):  # in a home folder that is read only
            path.touch()  # the ones used last stay
        return form
    form = make()
    try:
        with replacing(path) as unfinished:
            unfinished.write_bytes(hashlib.sha256(form).digest() + form)
            unfinished.chmod(0o600)
        _forget_old(path.parent)
    except OSError as error:  # a home folder that is full, or nobody's to write to
        _logger.debug(f"The form of this network is not kept: {error}")
    return form


def _is_own(path: Path) -> bool:
    """Whether nobody but this user, or the machine's owner, could have written a file, which would say the scores."""
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
    """Tensors by their content, which pickles would put behind an address in memory; modules of known code alone."""

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
    except PackageNotFoundError:  # nothing is made without it
        return ""


@cache
def _code() -> str:
    """A hash of the code that makes forms, which may change without the version."""
    digest = hashlib.sha256()
    for part in (PACKAGE / part for part in _PARTS):
        for file in [part] if part.is_file() else sorted(part.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()

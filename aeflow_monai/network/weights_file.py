"""Safe reading of weights files of unknown origin: no code in them is executed, and damage is reported."""

from __future__ import annotations

import zipfile
from pathlib import Path

from timm.models import load_state_dict
from torch import Tensor

__all__ = ["SUFFIXES", "read_weights"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict without executing any code in the file.

    Args:
        file: a file in the format of safetensors or of torch, according to its suffix.

    Returns:
        Tensors by name.

    Raises:
        ValueError: the file is damaged, has another format, holds Python objects (which can be code), holds no tensors,
            or has NaN or infinite values.

    Example:
        >>> import tempfile
        >>> import torch
        >>> file = Path(tempfile.mkdtemp(), "weights.pth")
        >>> torch.save({"weight": torch.ones(2), "epoch": 3}, file)
        >>> read_weights(file)
        {'weight': tensor([1., 1.])}
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        _require_whole(file)
    try:
        found = load_state_dict(str(file), weights_only=True)
        state = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    # each format raises errors of its own; the cause is dropped, since torch's suggests executing the file's code
    except Exception:
        raise ValueError(
            f"{file} cannot be read as a state dict: it is something else, damaged, or holds other Python objects than "
            "tensors, which can be code. Nothing of it was run. Download it again from where you trust it."
        ) from None
    if not state:
        raise ValueError(f"{file} holds no tensors. Expected a state dict in timm's names.")
    wrong = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        raise ValueError(f"{file} holds NaN or infinite values in {wrong[0]!r}. Download it again, or take another.")
    return state


def _require_whole(file: Path) -> None:
    """Verify the checksums of torch's zip archive, which torch ignores. Files of torch before 1.6 have none."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            # torch stores without compression; a compressed entry could be a zip bomb
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
            damaged = packed[0] if packed else archive.testzip()
    except Exception:  # the type depends on the kind of damage
        damaged = "its table of contents"
    if damaged is not None:
        raise ValueError(f"{file} is damaged: {damaged} is not as torch writes it. Download or copy it again.")

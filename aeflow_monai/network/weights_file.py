"""Reading a file of weights that came from elsewhere: nothing in it is run, and what is damaged is named."""

from __future__ import annotations

import zipfile
from pathlib import Path

from timm.models import load_state_dict
from torch import Tensor

__all__ = ["SUFFIXES", "read_weights"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict; nothing in the file is run.

    Args:
        file: in the format of safetensors or of torch, as its suffix says.

    Returns:
        Tensors by name.

    Raises:
        ValueError: the file is damaged, is something else, holds Python objects, which can be code, no tensors, or NaN
            or infinite values.

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
    # each format ends in errors of its own; without the cause, in which torch advises to run what is in the file
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
    """Compare the checksums of torch's zip archive, which torch passes over. Files of torch before 1.6 have none."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            # torch compresses nothing; what is compressed may be endless when it is unpacked
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
            damaged = packed[0] if packed else archive.testzip()
    except Exception:  # of many kinds, as the damage has
        damaged = "its table of contents"
    if damaged is not None:
        raise ValueError(f"{file} is damaged: {damaged} is not as torch writes it. Download or copy it again.")

"""Paths of a command line that are looked for at once, before anything large is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.files import user_path
from aeflow_monai.printable import shown

__all__ = ["WrongUse", "require_data", "require_model"]

_DOWNLOADED = "medmnist:"  # a name in place of a path


class WrongUse(Exception):
    """Something that was typed is wrong; nothing was begun."""


def require_model(folder: str | Path, config: str) -> None:
    """Refuse a folder that is not that of a training.

    Args:
        folder: as it was typed.
        config: name of a config that a training writes, without extension.

    Raises:
        WrongUse: names what is missing, and a folder nearby that has it.
    """
    file = user_path(folder) / "configs" / f"{config}.yaml"
    if file.is_file():
        return
    near = next((path.parent.parent for path in sorted(user_path(folder).glob(f"*/configs/{config}.yaml"))), None)
    hint = f" Did you mean {shown(near)}?" if near else ""
    raise WrongUse(f"Expected the folder of a training, with {shown(file)}; there is no such file.{hint}")


def require_data(paths: Sequence[str | Path]) -> None:
    """Refuse paths of images or data sets that do not exist.

    Args:
        paths: as they were typed; of a DICOM folder with the number of a series too, as `export#2`.

    Raises:
        WrongUse: names the first that is missing.
    """
    for path in map(str, paths):
        folder, _, series = path.rpartition("#")
        is_there = user_path(path).exists() or (series.isdigit() and user_path(folder).exists())
        if is_there or path.startswith(_DOWNLOADED):
            continue
        raise WrongUse(f"There is no file or folder {shown(user_path(path).absolute())}. Say where the images are.")

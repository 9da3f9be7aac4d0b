"""Early checks on the paths of a command line, before large imports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.files import user_path
from aeflow_monai.printable import shown

__all__ = ["WrongUse", "require_data", "require_model"]

_DOWNLOADED = "medmnist:"  # prefix of a name that replaces a path


class WrongUse(Exception):
    """The command line is invalid; nothing was started."""


def require_model(folder: str | Path, config: str) -> None:
    """Refuse a folder that does not hold a training.

    Args:
        folder: folder as typed.
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
        paths: paths as typed; also a series in a DICOM folder, such as `export#2`.

    Raises:
        WrongUse: names the first missing path.
    """
    for path in map(str, paths):
        folder, _, series = path.rpartition("#")
        is_there = user_path(path).exists() or (series.isdigit() and user_path(folder).exists())
        if is_there or path.startswith(_DOWNLOADED):
            continue
        raise WrongUse(f"There is no file or folder {shown(user_path(path).absolute())}. Say where the images are.")

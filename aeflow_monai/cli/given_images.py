"""Images that a command was given, as a config takes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.files import home, user_path, write_json

__all__ = ["data_of"]


def data_of(images: Sequence[str]) -> str:
    """What a config takes for these images: the only path, or a list of them, which is kept to repeat the run.

    Args:
        images: paths of files and of DICOM folders.

    Returns:
        A path.

    Raises:
        ValueError: one of several is a folder that holds no DICOM.
        OSError: the list cannot be kept.
    """
    if len(images) == 1:
        return images[0]
    paths = [user_path(path).absolute() for path in images]
    _require_single_images(paths)
    content = {"test": [{"image": str(path)} for path in paths]}
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path = Path(home("lists", f"{name[:16]}.json"))
    try:
        write_json(path, content)
    except OSError as error:
        remedy = "Set AEFLOW_HOME to a folder in which can be written, or give one folder."
        raise type(error)(
            f"The list of the images cannot be kept in {path.parent}: {error.strerror}. {remedy}"
        ) from error
    return str(path)


def _require_single_images(paths: Sequence[Path]) -> None:
    """A folder among several paths stands for the image that its DICOM files make."""
    from aeflow_monai.data.datalist.image_files import is_dicom

    for path in paths:
        if path.is_dir() and not any(is_dicom(file) for file in path.iterdir() if file.is_file()):
            raise ValueError(
                f"{path} is a folder without DICOM files. Give one folder alone, or the files themselves, as {path}/*"
            )

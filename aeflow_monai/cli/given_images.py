"""Convert the images of a command line to the form that a config takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.files import home, user_path, write_json

__all__ = ["data_of"]


def data_of(images: Sequence[str]) -> str:
    """Return a single path as it is, or the path of a list of several, which is kept so that the run can be repeated.

    Args:
        images: paths of files and of DICOM folders.

    Returns:
        The path for `dataset_dir`.

    Raises:
        ValueError: one of several paths is a folder without DICOM files.
        OSError: the list cannot be written.
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
    """Refuse a folder among several paths unless its DICOM files form one image."""
    from aeflow_monai.data.datalist.image_files import is_dicom

    for path in paths:
        if path.is_dir() and not any(is_dicom(file) for file in path.iterdir() if file.is_file()):
            raise ValueError(
                f"{path} is a folder without DICOM files. Give one folder alone, or the files themselves, as {path}/*"
            )

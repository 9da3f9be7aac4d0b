"""An item of a datalist: who is on it, and the files that it is read from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from aeflow_monai.data.datalist.walking import exists

__all__ = ["files_of", "first_path", "image_files_of", "patient_of"]


def patient_of(item: Mapping[str, Any]) -> str:
    """Who is on the image; the case if nobody is named."""
    return str(item.get("patient", item["case"]))


def first_path(item: Mapping[str, Any]) -> str:
    """Path of the image, of several modalities the first."""
    return str(ensure_tuple(item["image"])[0])


def image_files_of(item: Mapping[str, Any]) -> list[Path]:
    """All files of the image: of every modality, and in a folder of DICOM files. Those that are missing are left out.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b.dcm", "a.dcm"):
        ...     (folder / name).touch()
        >>> [file.name for file in image_files_of({"case": "series", "image": str(folder)})]
        ['a.dcm', 'b.dcm']
    """
    return _files(ensure_tuple(item["image"]))


def files_of(item: Mapping[str, Any]) -> list[Path]:
    """All files of the image and of its mask."""
    return _files([*ensure_tuple(item["image"]), *([item["lesion"]] if item.get("lesion") else [])])


def _files(paths: Any) -> list[Path]:
    there = [path for path in map(Path, paths) if exists(path)]  # not so where a name is too long to be asked for
    found = (sorted(path.iterdir()) if path.is_dir() else [path] for path in there)
    return [file for files in found for file in files if file.is_file()]

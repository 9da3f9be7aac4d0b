"""Items of a datalist: their patient and the files that they are read from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
from monai.utils import ensure_tuple

from aeflow_monai.data.dicom.paths import split_name
from aeflow_monai.data.dicom.series import contents_of
from aeflow_monai.data.itk_headers import is_itk_volume, voxel_files

__all__ = ["files_of", "first_path", "image_files_of", "patient_of", "source_exists"]

_HALVES = (".hdr", ".img", ".hdr.gz", ".img.gz")


def patient_of(item: Mapping[str, Any]) -> str:
    """Return the patient of an item, or its case if no patient is named."""
    return str(item.get("patient", item["case"]))


def first_path(item: Mapping[str, Any]) -> str:
    """Return the path of the image, or of its first modality."""
    return str(ensure_tuple(item["image"])[0])


def image_files_of(item: Mapping[str, Any]) -> list[Path]:
    """Return all files of the image: every modality, every file of a DICOM folder, voxel files beside their header.

    Missing files are left out, and so are those that a damaged header names.

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
    """Return all files of the image and of its mask."""
    return _files([*ensure_tuple(item["image"]), *([item["lesion"]] if item.get("lesion") else [])])


def source_exists(path: Path) -> bool:
    """Whether a file, a folder, or the folder of a series such as `export#3` exists; False for an invalid name."""
    try:
        return split_name(path)[0].exists()
    except (OSError, ValueError):
        return False


def _files(paths: Any) -> list[Path]:
    return [file for path in paths for file in _files_at(Path(path)) if file.is_file()]


def _files_at(path: Path) -> list[Path]:
    """Return the files of a folder or of one series in it; none for an invalid name."""
    if not source_exists(path):
        return []
    folder, name = split_name(path)
    if name:
        images = (image for image in contents_of(folder).images if image.is_stack and image.name == name)
        return [file.path for image in images for file in image.files]
    return sorted(path.iterdir()) if path.is_dir() else [path, *_beside(path)]


def _beside(path: Path) -> list[Path]:
    """Return the voxel files that belong to a header, or the other half of an Analyze or NIfTI pair."""
    if is_itk_volume(path):
        with suppress(OSError, ValueError):  # reading the image reports these
            return voxel_files(path)
    if path.name.lower().endswith(_HALVES):
        halves = [Path(half.filename) for half in nib.Nifti1Pair.filespec_to_file_map(path).values()]
        return [half for half in halves if half != path]
    return []

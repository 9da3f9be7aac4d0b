"""Images in folders: files with a known extension, and folders that hold the slices of a DICOM series."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from aeflow_monai.data.dicom.paths import is_dicom_file
from aeflow_monai.errors import some as some

VOLUME_EXTENSIONS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
EXTENSIONS = (*VOLUME_EXTENSIONS, ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_FILES_TRIED = 16  # of a folder, before it counts as one without DICOM files


def is_image(path: Path) -> bool:
    """Whether the name has the extension of an image."""
    return path.name.lower().endswith(EXTENSIONS)


def is_volume(path: Path) -> bool:
    """Whether the name has the extension of a volume."""
    return path.name.lower().endswith(VOLUME_EXTENSIONS)


def is_series(folder: Path) -> bool:
    """Whether a folder itself holds DICOM files."""
    if not folder.is_dir():
        return False
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not is_image(path))
    return any(is_dicom_file(path) for path in islice(files, _FILES_TRIED))


def images_below(folder: Path) -> list[Path]:
    """Visible images at any depth, and folders of DICOM slices, sorted; none if there is no such folder."""
    files = (path for path in _visible(folder) if is_image(path) or path.is_dir())
    return sorted((path for path in files if path.is_file() or is_series(path)), key=Path.as_posix)


def volumes_below(folder: Path) -> list[Path]:
    """Visible files of volumes at any depth, sorted; links to files that are not there too, so that they are missed."""
    return sorted((path for path in _visible(folder) if is_volume(path) and not path.is_dir()), key=Path.as_posix)


def series_below(folder: Path) -> list[Path]:
    """Visible folders of DICOM slices, the folder itself among them, sorted."""
    return sorted((path for path in _visible(folder) if is_series(path)), key=Path.as_posix)


def subfolders(folder: Path) -> list[Path]:
    """Visible folders but those of masks, sorted."""
    children = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted((path for path in children if not path.name.lower().endswith("masks")), key=Path.as_posix)


def stem(path: Path) -> str:
    """Name of a file without its extension; of a folder the name."""
    if path.is_dir():
        return path.name
    extension = next((e for e in EXTENSIONS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(extension)]


def _visible(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield Path(parent)
        yield from (Path(parent, name) for name in files if not name.startswith("."))

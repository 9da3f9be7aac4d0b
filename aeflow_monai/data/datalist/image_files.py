"""Images in folders: files with a known extension, and folders that hold the slices of a DICOM series."""

from __future__ import annotations

import re
from pathlib import Path

from aeflow_monai.data.datalist.walking import children, read_tree
from aeflow_monai.data.dicom.paths import is_dicom_file

VOLUME_EXTENSIONS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
EXTENSIONS = (*VOLUME_EXTENSIONS, ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# Formats that are not read. A mask in one of them tells that its image is not normal.
_UNREAD = (".mgz", ".mgh", ".hdr", ".nii.bz2", ".nii.xz", ".nii.zst", ".mnc", ".gif", ".webp", ".npy", ".npz", ".mat")
_MASK_FOLDER = re.compile(
    r"(?:.*[ _.-])?"
    r"(?:labels?|labels(?:tr|ts|va)|annotations?|ground[ _-]?truth|(?:masks?|segmentations?)(?:[ _.-].*)?)",
    re.IGNORECASE,
)


def is_image(path: Path) -> bool:
    """Whether a path has the extension of an image."""
    return path.name.lower().endswith(EXTENSIONS)


def is_volume(path: Path) -> bool:
    """Whether a path has the extension of a volume."""
    return path.name.lower().endswith(VOLUME_EXTENSIONS)


def is_picture(path: Path) -> bool:
    """Whether a path has the extension of a 2D image."""
    return is_image(path) and not is_volume(path)


def is_unread(path: Path) -> bool:
    """Whether a path has the extension of an image in a format that is not read, as masks may have."""
    return path.name.lower().endswith(_UNREAD)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM and can be read."""
    try:
        return not is_image(path) and is_dicom_file(path)
    except OSError:  # no permission
        return False


def is_series(folder: Path) -> bool:
    """Whether a folder directly holds DICOM files."""
    if not folder.is_dir():
        return False
    return any(is_dicom(path) for path in children(folder))


def series_below(folder: Path) -> list[Path]:
    """Return visible folders of DICOM slices, including the folder itself, sorted."""
    return sorted((path for path in read_tree(folder).folders if is_series(path)), key=Path.as_posix)


def subfolders(folder: Path) -> list[Path]:
    """Return visible subfolders except those of masks, sorted."""
    folders = (path for path in children(folder) if path.is_dir() and not is_mask_folder(path.name))
    return sorted(folders, key=Path.as_posix)


def is_mask_folder(name: str) -> bool:
    """Whether a folder has the name of a mask folder, such as `test_masks` or `labelsTr`."""
    return name.lower().endswith("masks") or bool(_MASK_FOLDER.fullmatch(name))


def stem(path: Path) -> str:
    """Return the name of a file without its extension, or the name of a folder."""
    return path.name if path.is_dir() else without_extension(path.name)


def without_extension(name: str) -> str:
    """Return a file name without its extension, which may have two parts."""
    extension = next((e for e in (*EXTENSIONS, *_UNREAD) if name.lower().endswith(e)), Path(name).suffix)
    return name[: len(name) - len(extension)]

"""Find images in a folder and its subfolders, without masks and outputs of this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from aeflow_monai.data.datalist.image_files import is_image, is_picture, is_series, is_unread, is_volume
from aeflow_monai.data.datalist.mask_names import is_mask_beside, is_mask_name, mask_folder_of
from aeflow_monai.data.datalist.walking import Tree, read_tree
from aeflow_monai.marks import has_mark

__all__ = ["images_below", "is_mask_of", "masks_below", "pictures_below", "unread_below", "volumes_below"]


def images_below(folder: Path) -> list[Path]:
    """Return visible images and folders of DICOM slices at any depth, sorted; empty if the folder does not exist."""
    tree = _tree(folder)
    files = [path for path in tree.files if is_image(path) and not is_mask_of(path, folder) and not has_mark(path)]
    return sorted([*files, *(path for path in tree.folders if is_series(path))], key=Path.as_posix)


def masks_below(folder: Path, *, all_are: bool = False) -> list[Path]:
    """Return visible masks at any depth, by their names or folders, sorted; with `all_are` all images.

    Those in a format that is not read are among them: their images are not normal.
    """
    files = [path for path in _tree(folder).files if is_image(path) or is_unread(path)]
    files = [path for path in files if all_are or is_mask_of(path, folder)]
    return sorted((path for path in files if all_are or not has_mark(path)), key=Path.as_posix)


def volumes_below(folder: Path) -> list[Path]:
    """Return visible volumes at any depth, sorted, with masks, and with broken links so that these are reported."""
    return _files_below(folder, is_volume)


def pictures_below(folder: Path) -> list[Path]:
    """Return visible 2D images at any depth, otherwise as `volumes_below`."""
    return _files_below(folder, is_picture)


def unread_below(folder: Path) -> list[Path]:
    """Return visible images in formats that are not read at any depth, sorted."""
    return _files_below(folder, is_unread)


def _files_below(folder: Path, is_wanted: Callable[[Path], bool]) -> list[Path]:
    tree = _tree(folder)
    files = (path for path in (*tree.files, *tree.broken) if is_wanted(path))
    return sorted((path for path in files if not has_mark(path)), key=Path.as_posix)


def is_mask_of(path: Path, root: Path) -> bool:
    """Whether a file below a root is a mask, by its own name or a folder's."""
    return is_mask_name(path) or mask_folder_of(path, root) is not None or is_mask_beside(path)


def _tree(folder: Path) -> Tree:
    return read_tree(folder) if folder.is_dir() else Tree(folder)

"""Walk through a folder, visiting everything in it once, and record by kind what cannot be followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Tree", "children", "exists", "identity", "read_tree"]


@dataclass
class Tree:
    """The contents of a folder and its subfolders, sorted by name.

    Args:
        root: the folder.
        folders: visible folders, including the root.
        files: visible files.
        hidden: files and folders whose names begin with a dot; these folders were not read.
        broken: broken links.
        repeated: links to folders that were already read, as in a cycle.
        unreadable: folders without read permission, and paths that are neither file nor folder.
    """

    root: Path
    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


def read_tree(root: Path) -> Tree:
    """Walk through a folder; links to folders are followed, and each real folder is read once.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "a.png").touch()
        >>> (root / "again").symlink_to(root)
        >>> tree = read_tree(root)
        >>> [path.name for path in tree.files], [path.name for path in tree.repeated]
        (['a.png'], ['again'])
    """
    tree = Tree(root)
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:  # real folders before linked ones, so that each is recorded under its shortest path
        links: list[Path] = []
        for folder in waiting:
            _read_folder(folder, tree, seen, links)
        waiting = sorted(links)
    return tree


def children(folder: Path) -> list[Path]:
    """Return the visible files and folders in a folder, sorted; empty if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def exists(path: Path) -> bool:
    """Whether a file or folder exists, links followed; False for invalid names."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def identity(path: Path) -> tuple[int, int] | str:
    """Return a value shared by all paths, links and hard links of a file or folder; the path if it does not exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return os.path.normpath(path)
    return status.st_dev, status.st_ino


def _read_folder(folder: Path, tree: Tree, seen: set[tuple[int, int]], links: list[Path]) -> None:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        tree.repeated.append(folder)
        return
    seen.add((status.st_dev, status.st_ino))
    tree.folders.append(folder)
    for path, kind in _entries(folder, tree):
        if kind == "folder":
            _read_folder(path, tree, seen, links)
        elif kind == "link":
            links.append(path)
        else:
            {"file": tree.files, "hidden": tree.hidden, "broken": tree.broken}.get(kind, tree.unreadable).append(path)


def _entries(folder: Path, tree: Tree) -> Iterator[tuple[Path, str]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        tree.unreadable.append(folder)
        return
    for entry in entries:
        yield folder / entry.name, _kind(entry)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.name.startswith("."):
            return "hidden"
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
        if entry.is_file():
            return "file"
        return "broken" if entry.is_symlink() else "special"
    except OSError:  # a link to itself
        return "broken"

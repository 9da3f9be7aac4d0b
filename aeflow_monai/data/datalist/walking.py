"""One walk through a folder: everything in it is met once, and what cannot be followed is kept by kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Tree", "children", "exists", "identity", "read_tree"]


@dataclass
class Tree:
    """What lies in a folder and below it, in the order of the names.

    Args:
        root: the folder.
        folders: visible ones, the root among them.
        files: visible ones.
        hidden: files and folders whose names begin with a dot; nothing below them was looked at.
        broken: links to nothing.
        repeated: links to folders that were read already, as in a cycle.
        unreadable: folders without permission, and what is neither file nor folder.
    """

    root: Path
    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


def read_tree(root: Path) -> Tree:
    """Walk through a folder; linked folders are followed, each real folder is read once.

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
    while waiting:  # real folders before those that a link leads to, so that a path is the shortest
        links: list[Path] = []
        for folder in waiting:
            _read_folder(folder, tree, seen, links)
        waiting = sorted(links)
    return tree


def children(folder: Path) -> list[Path]:
    """Visible files and folders in a folder, sorted; none if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def exists(path: Path) -> bool:
    """Whether there is a file or folder, behind a link too; also for names that no file system takes."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def identity(path: Path) -> tuple[int, int] | str:
    """The same for each path, link or hard link of one file or folder; of what is not there, its path."""
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

"""Folders that tests only read, each made once for all workers of a session."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


class MadeOnce:
    """Makes folders, and knows which of their files have changed since.

    Args:
        root: folder that all workers of a session share.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._used: dict[Path, Path] = {}

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of a name; made now, unless another worker has.

        Args:
            name: of the folder below the root.
            make: writes the folder, of which nothing is there yet.
        """
        folder = self.root / name
        state = folder.with_name(f"{folder.name}.json")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not state.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker in which it failed
                make(folder)
                state.write_text(json.dumps(_files_of(folder)), encoding="utf-8")
        self._used[folder] = state
        return folder

    def changes(self) -> list[str]:
        """Names of files that were added, removed or written since their folder was made."""
        changed = []
        for folder, state in self._used.items():
            before, now = json.loads(state.read_text(encoding="utf-8")), _files_of(folder)
            names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
            changed += [str(folder / name) for name in names]
        return changed


def _files_of(folder: Path) -> dict[str, list[int]]:
    """Size and time of what is in a folder; of folders only that they are there."""
    found = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        found[str(path.relative_to(folder))] = [] if path.is_dir() else [about.st_size, about.st_mtime_ns]
    return found

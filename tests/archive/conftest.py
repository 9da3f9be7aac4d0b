import shutil
from pathlib import Path

import pytest
from archive_runs import Scans
from made_once import MadeOnce


@pytest.fixture(scope="session")
def scans(made_once: MadeOnce, volumes: Path) -> Scans:
    """Twelve volumes: read only."""
    sources = sorted(volumes.rglob("test_*.nii.gz"))[:6] * 2
    names = [f"scan{number:02d}.nii.gz" for number in range(len(sources))]

    def write(folder: Path) -> None:
        folder.mkdir()
        for path, name in zip(sources, names, strict=True):
            shutil.copy(path, folder / name)
        (folder / "damaged.nii.gz").write_bytes((folder / names[0]).read_bytes()[:100])
        lines = [*names[:3], "damaged.nii.gz", names[0], f"./{names[1]}", *names[3:], "absent.nii.gz"]
        (folder / "list.txt").write_text("\n".join(lines))

    folder = made_once("scans", write)
    return Scans(folder, folder / "list.txt", len(names))

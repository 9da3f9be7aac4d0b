import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from archive_runs import Scans, Start
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


# with a row stored as soon as it is there, so that a process that is quick can be killed amid its studies
COMMAND = """
import sys
from importlib import import_module
import_module("aeflow_monai.archive.ledger")._EVERY = 0.0
from aeflow_monai.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def start_aeflow() -> Start:
    """Starts `aeflow` in a process group of its own."""

    def start(arguments: Sequence[str | Path], **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start

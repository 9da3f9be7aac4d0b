import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from archive_runs import Scans, Start


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory, volumes: Path) -> Scans:
    """Twelve volumes: read only."""
    folder = tmp_path_factory.mktemp("scans")
    for number, path in enumerate(sorted(volumes.rglob("test_*.nii.gz"))[:6] * 2):
        shutil.copy(path, folder / f"scan{number:02d}.nii.gz")
    names = [path.name for path in sorted(folder.iterdir())]
    (folder / "damaged.nii.gz").write_bytes((folder / names[0]).read_bytes()[:100])
    lines = [*names[:3], "damaged.nii.gz", names[0], f"./{names[1]}", *names[3:], "absent.nii.gz"]
    listed = folder / "list.txt"
    listed.write_text("\n".join(lines))
    return Scans(folder, listed, len(names))


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

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from made_once import MadeOnce

Run = Callable[..., Any]


class Evaluated(NamedTuple):
    """A bundle that was evaluated, and the folder of the results."""

    run: Path
    results: Path


@pytest.fixture(scope="session")
def evaluated(made_once: MadeOnce, volumes: Path, trained: Path, run_workflow: Run) -> Evaluated:
    """An evaluation of the trained model on `volumes`: read only."""

    def evaluate(folder: Path) -> None:
        shutil.copytree(trained, folder / "RUN")
        where = {"dataset_dir": str(volumes), "output_dir": str(folder / "RESULTS")}
        run_workflow(folder / "RUN/configs/evaluate.yaml", **where, n_bootstrap=50)

    folder = made_once("evaluated", evaluate)
    return Evaluated(folder / "RUN", folder / "RESULTS")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A set of real images by its name, or the test is skipped."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("AEFLOW_DATA") or "absent", name)
        if not folder.is_dir():
            pytest.skip(f"real images are not here: set AEFLOW_DATA to a folder that holds {name}")
        return folder

    return find

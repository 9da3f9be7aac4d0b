import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from aeflow_monai import Workflow, write_phantom

ROOT = Path(__file__).parent.parent
if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core, whose threads would slow each other
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
# A network and a training that take seconds; explicit, so that a change of the defaults changes no test.
TRAINING = {
    "image_size": [64, 64],
    "network_def#network#n_steps": 2,
    "network_def#network#hidden_channels": 8,
    "slicer#min_foreground": 0.0,
    "epochs": 3,
    "lesion_copies": 0,
    "batch_size": 8,
    "learning_rate": 0.001,
    "calibration_fraction": 0.15,
    "seed": 0,
}

RunWorkflow = Callable[..., ConfigWorkflow]
RunCommand = Callable[..., subprocess.CompletedProcess[str]]


def config_files(configs: str | Path | Sequence[str | Path]) -> list[str]:
    """Paths of configs: the bundle's and the overlays by their name, any other by its path."""
    names = [configs] if isinstance(configs, (str, Path)) else configs
    return [
        str(next((f for f in (ROOT / "bundle/configs" / name, ROOT / "configs" / name) if f.is_file()), name))
        for name in names
    ]


@pytest.fixture(scope="session", autouse=True)
def aeflow_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of all that has no other place, so that tests leave the user's alone."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AEFLOW_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_training() -> dict[str, Any]:
    """Options of train.yaml for a training of seconds."""
    return dict(TRAINING)


@pytest.fixture(scope="session")
def start_workflow() -> RunWorkflow:
    """Reads configs of the bundle with options, as `python -m monai.bundle run` does, and initializes the workflow."""

    def start(configs: str | Path | Sequence[str | Path], **options: Any) -> ConfigWorkflow:
        files = config_files(configs)
        kind = "train" if Path(files[0]).name == "train.yaml" else "infer"
        workflow = Workflow(files, workflow_type=kind, logging_file=False, **options)
        workflow.initialize()
        return workflow

    return start


@pytest.fixture(scope="session")
def run_workflow(start_workflow: RunWorkflow) -> RunWorkflow:
    """Runs configs of the bundle with options in this process, which spares the imports."""

    def run(configs: str | Path | Sequence[str | Path], **options: Any) -> ConfigWorkflow:
        workflow = start_workflow(configs, **options)
        workflow.run()
        workflow.finalize()
        return workflow

    return run


@pytest.fixture(scope="session")
def run_command() -> RunCommand:
    """Runs `python -m <command> --config_file <configs> --<option> <value> ...` in a process of its own."""

    def run(
        command: str,
        configs: str | Path | Sequence[str | Path],
        cwd: Path = ROOT,
        home: Path | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        arguments = [f"--{key}={value}" for key, value in {"config_file": config_files(configs), **options}.items()]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads or torch.get_num_threads())}
        if home:
            environment["AEFLOW_HOME"] = str(home)
        return subprocess.run(
            [sys.executable, "-m", *command.split(), *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, small: 6 volumes to train on, 3 normal and 3 abnormal ones to test on."""
    folder = tmp_path_factory.mktemp("data") / "volumes"
    return write_phantom(folder, n_train=6, n_test_normal=3, n_test_abnormal=3)


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, volumes: Path, run_workflow: RunWorkflow, tiny_training: dict[str, Any]
) -> Path:
    """The bundle of one tiny training on `volumes`, shared by all tests: read only."""
    folder = tmp_path_factory.mktemp("trained") / "RUN"
    run_workflow("train.yaml", dataset_dir=str(volumes), output_dir=str(folder), **tiny_training)
    return folder

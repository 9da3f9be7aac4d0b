from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from forked import ForkServer
from made_once import MadeOnce

if TYPE_CHECKING:  # imported where they are used, since pytest's own process beside its workers needs none of them
    from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).parent.parent
if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core, whose threads would slow each other
    os.environ["OMP_NUM_THREADS"] = "1"
# A network and a training that take seconds; explicit, so that a change of the defaults changes no test.
TRAINING = {
    "image_size": [64, 64],
    "network_def#network#n_steps": 2,
    "network_def#network#hidden_channels": 8,
    "slicer#min_foreground": 0.0,
    "epochs": 3,
    "lesion_copies": 0,
    "acquisition_copies": 0,
    "batch_size": 8,
    "learning_rate": 0.001,
    "calibration_fraction": 0.15,
    "seed": 0,
}

RunWorkflow = Callable[..., "ConfigWorkflow"]
RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    """Let workers take files in the order of the next function, not those of many tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that run the bundle as a user would come first, so that no worker ends with a long one."""
    long = {item.path for item in items if item.get_closest_marker("end_to_end")}
    items.sort(key=lambda item: item.path not in long)


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

    from aeflow_monai import Workflow

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
def fork_server() -> Iterator[ForkServer]:
    """Runs commands of Python in forked processes, which have the imports done."""
    server = ForkServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def run_command(fork_server: ForkServer) -> RunCommand:
    """Runs `python -m <command> --config_file <configs> --<option> <value> ...` in a process of its own.

    It is a new interpreter if it is to be `fresh`, else one that is forked.
    """
    import torch

    def run(
        command: str,
        configs: str | Path | Sequence[str | Path],
        cwd: Path = ROOT,
        home: Path | None = None,
        threads: int | None = None,
        fresh: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        arguments = [f"--{key}={value}" for key, value in {"config_file": config_files(configs), **options}.items()]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads or torch.get_num_threads())}
        if home:
            environment["AEFLOW_HOME"] = str(home)
        words = ["-m", *command.split(), *arguments]
        if not fresh:
            return fork_server.run(words, cwd, environment)
        return subprocess.run(
            [sys.executable, *words],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Folders that are made once for all workers, and read only."""
    own = tmp_path_factory.getbasetemp()
    return MadeOnce((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made_once")


@pytest.fixture(scope="module", autouse=True)
def _what_tests_share_stays_as_it_was(made_once: MadeOnce) -> Iterator[None]:
    yield
    changes = made_once.changes()
    assert not changes, f"tests of this file, or of one that ran beside it, changed what all share: {changes}"


@pytest.fixture(scope="session")
def volumes(made_once: MadeOnce) -> Path:
    """The embedded data set, small: 6 volumes to train on, 3 normal and 3 abnormal ones to test on; read only."""
    from aeflow_monai import write_phantom

    return made_once("volumes", lambda folder: write_phantom(folder, n_train=6, n_test_normal=3, n_test_abnormal=3))


@pytest.fixture(scope="session")
def png_slices(made_once: MadeOnce) -> Path:
    """PNG slices: 12 to train on, 5 normal and 8 abnormal ones to test on; read only."""
    from aeflow_monai.data import write_phantom_slices

    counts = {"n_train": 12, "n_test_normal": 5, "n_test_abnormal": 8}
    return made_once("png_slices", lambda folder: write_phantom_slices(folder, **counts))


@pytest.fixture(scope="session")
def trained(made_once: MadeOnce, volumes: Path, run_workflow: RunWorkflow, tiny_training: dict[str, Any]) -> Path:
    """The bundle of one tiny training on `volumes`, shared by all tests: read only."""

    def train(folder: Path) -> None:
        run_workflow("train.yaml", dataset_dir=str(volumes), output_dir=str(folder), **tiny_training)

    return made_once("trained/RUN", train)


@pytest.fixture(scope="session")
def inferred(made_once: MadeOnce, volumes: Path, trained: Path, run_workflow: RunWorkflow) -> Path:
    """All that inference writes for the test images of `volumes`: read only."""
    config, data = trained / "configs/inference.yaml", str(volumes)
    return made_once("inferred", lambda folder: run_workflow(config, dataset_dir=data, output_dir=str(folder)))

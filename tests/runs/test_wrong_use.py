"""Commands that are used wrongly end with one message; each is a process of its own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forked import ForkServer
from outputs import files_below, said

from aeflow_monai.engine.config.template import config_files

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.end_to_end


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that failed, with which its output ends."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    _, _, message = done.stderr.partition("\nThe run failed: ")
    assert len(message.splitlines()) == 1, done.stderr
    return message.strip()


def test_folders_may_have_any_name(tmp_path: Path, volumes: Path, run_command: Run) -> None:
    shutil.copytree(volumes, tmp_path / "1e5")
    done = run_command("monai.bundle run prepare", "train.yaml", tmp_path, dataset_dir="1e5", output_dir="None")
    assert done.returncode == 0, done.stderr
    assert files_below(tmp_path / "None") >= {"dataset.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"1e5", "None"}


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("run", {"epochs": "abc"}, "epochs: expected a whole number of 1 or more, or null; got 'abc'."),
        ("run trian", {}, "There is no 'trian' to run (did you mean 'train'?): this config has run, train, prepare."),
        ("run", {"cache_dir": "/dev/null/x"}, "cache_dir: expected a folder; got the file /dev/null. Give another one"),
    ],
)
def test_wrong_use_ends_with_one_message(
    tmp_path: Path, volumes: Path, run_command: Run, verb: str, options: dict[str, str], message: str
) -> None:
    where = {"dataset_dir": volumes, "output_dir": tmp_path / "RUN"}
    done = run_command(f"monai.bundle {verb}", "train.yaml", home=tmp_path / "home", **where, **options)
    assert last_words(done).startswith(message)
    assert not list(tmp_path.iterdir())


# monai.bundle with a limit on the size of files, which the system treats as it treats a full disk
LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


def test_a_disk_without_space_is_named(tmp_path: Path, trained: Path, volumes: Path, fork_server: ForkServer) -> None:
    out = tmp_path / "MAPS"
    where = [f"--config_file={trained}/configs/inference.yaml", f"--dataset_dir={volumes}", f"--output_dir={out}"]
    done = fork_server.run(["-c", LIMITED, "run", *where], tmp_path, os.environ)
    said_of_it = last_words(done)
    assert said_of_it.startswith("File too large: ")
    assert str(out) in said_of_it
    assert "Free space there, or give another folder with --output_dir." in said_of_it


def test_ctrl_c_ends_with_a_line(tmp_path: Path, volumes: Path) -> None:
    where = [
        f"--config_file={config_files('train')[0]}",
        f"--dataset_dir={volumes}",
        f"--output_dir={tmp_path / 'RUN'}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # of tests in the background of a shell, whose processes ignore the signal
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-m", "monai.bundle", "run", *where, "--epochs=200"]
    with subprocess.Popen(command, **pipes, env=environment, preexec_fn=heed) as process:
        assert process.stdout is not None
        assert any(line.startswith("output folder: ") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 130
    assert errors.endswith("\nThe run was stopped.\n")
    assert "Traceback" not in errors


def test_a_resumed_training_names_the_options_that_differ(
    tmp_path: Path,
    trained: Path,
    volumes: Path,
    start_workflow: Callable[..., object],
    tiny_training: dict[str, object],
) -> None:
    (checkpoint, *_) = sorted((trained / "logs/checkpoints").glob("*.pt"))
    options = {**tiny_training, "seed": 7, "learning_rate": 0.5, "resume": str(checkpoint)}
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "RUN")}
    with pytest.raises(RuntimeError) as raised:
        start_workflow("train.yaml", **options, **where)
    assert said(raised) == (
        "A training goes on with the options that it began with; these differ: "
        "seed (trained with 0, given 7); learning_rate (trained with 0.001, given 0.5)."
    )
    assert not list(tmp_path.iterdir())

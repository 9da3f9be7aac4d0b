import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aeflow_monai import Workflow
from aeflow_monai.engine.config.failure_message import end_with_one_message, message_of
from aeflow_monai.engine.config.template import config_files
from aeflow_monai.engine.verbs import begin_training
from aeflow_monai.errors import CaseFailures
from aeflow_monai.locks import FolderInUse

LastWords = Callable[[BaseException], str]


@pytest.fixture
def last_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> LastWords:
    """What a command prints of an error that nothing caught."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    end_with_one_message("/data/RUN")

    def say(error: BaseException) -> str:
        capsys.readouterr()
        sys.excepthook(type(error), error, error.__traceback__)
        return capsys.readouterr().err.strip()

    return say


def failure_of(content: dict[str, Any], key: str, folder: Path) -> BaseException:
    """The error of a part of a config, in what MONAI wraps it in."""
    file = folder / "config.yaml"
    file.write_text(json.dumps(content))
    with pytest.raises(Exception) as raised:  # noqa: PT011  # any that MONAI makes of it
        Workflow(str(file), workflow_type=None, logging_file=False).parser.get_parsed_content(key)
    return raised.value


def test_it_is_what_began_the_failure_in_place_of_the_traceback(tmp_path: Path, last_words: LastWords) -> None:
    absent = tmp_path / "absent.pt"
    call = f"$aeflow_monai.engine.config.stored_model.read_model('{absent}')"
    error = failure_of({"imports": ["$import aeflow_monai"], "model": call, "run": "$@model"}, "run", tmp_path)
    assert last_words(error).startswith(f"The run failed: There is no trained model at {absent}. Train one first")


def test_it_is_the_remedy_and_not_what_that_was_made_from(tmp_path: Path, last_words: LastWords) -> None:
    # the encoder's message stands above an IndexError that says nothing to the user
    encoder = {"_target_": "aeflow_monai.network.Encoder", "stages": [9], "weights": "random"}
    error = failure_of({"encoder": encoder}, "encoder", tmp_path)
    assert last_words(error) == "The run failed: tf_efficientnet_lite0 has feature stages 0 to 4; got stages=[9]."


def test_what_nobody_has_foreseen_keeps_its_traceback(tmp_path: Path, last_words: LastWords) -> None:
    loss = {"_target_": "aeflow_monai.network.AEFlowLoss", "alhpa": 0.5}
    said_of_it = last_words(failure_of({"loss": loss}, "loss", tmp_path))
    assert said_of_it.startswith("Traceback")
    last = said_of_it.splitlines()[-1]
    assert last.startswith("The run failed: ")
    assert "'alhpa'" in last


def test_a_run_that_was_stopped_ends_with_the_code_of_shells(last_words: LastWords) -> None:
    with pytest.raises(SystemExit) as ended:
        last_words(KeyboardInterrupt())
    assert ended.value.code == 130


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: /data/RUN. Free space there, or"),
        (OSError(errno.ENOSPC, "No space left on device", "/d/a.nii"), "No space left on device: /d/a.nii. Free"),
        (OSError(errno.EFBIG, "File too large", "/d/a.nii"), "File too large: /d/a.nii. Free space there, or give"),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0"),
            "No space left, or a limit on the size of files: /data/RUN. Free",
        ),
        (CaseFailures("2 of 3 cases failed:\n- a"), "2 of 3 cases failed:\n- a"),
        (FolderInUse("/data/RUN is in use"), "/data/RUN is in use"),
    ],
)
def test_a_full_disk_is_named_with_the_path(last_words: LastWords, error: Exception, message: str) -> None:
    assert last_words(error).startswith(f"The run failed: {message}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    with pytest.raises(OSError) as raised:  # noqa: PT011  # of which the next line asks
        path.touch()
    assert message_of(raised.value) == f"File name too long: {path}. Give a shorter one."


def test_a_disk_that_is_really_full() -> None:
    with pytest.raises(OSError, match="No space left") as raised:
        Path("/dev/full").write_text("x")
    assert message_of(raised.value, "/data/RUN").startswith("No space left on device: /data/RUN. Free space there")


def test_a_run_that_was_started_from_python_leaves_the_end_alone(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    given = Workflow(config_files("train"), logging_file=False, dataset_dir=str(volumes)).parser["given"]
    begin_training(given, str(tmp_path / "RUN"), 0)
    assert sys.excepthook is sys.__excepthook__
    begin_training(given._replace(command="python -m monai.bundle run"), str(tmp_path / "RUN"), 0)
    assert sys.excepthook is not sys.__excepthook__

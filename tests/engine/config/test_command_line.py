import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from aeflow_monai.engine.config.command_line import given_config, path_of
from aeflow_monai.engine.config.template import config_files
from aeflow_monai.engine.config.workflow import GivenConfig

Read = Callable[..., GivenConfig | None]
PROGRAM = str(Path("/somewhere/monai/bundle/__main__.py"))
TRAIN = f"--config_file={config_files('train')[0]}"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """What a command line `python -m monai.bundle ...` is read as."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)

    def given(*arguments: str, program: str = PROGRAM) -> GivenConfig | None:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        return given_config()

    return given


def content(given: GivenConfig | None) -> dict[str, Any]:
    assert given is not None
    return given.content


def test_a_command_line_is_read_as_monai_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Read) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for name, written in {
        "configs/train.yaml": {"epochs": 1, "size": [1], "part": {"kind": "x"}, "rate": 0, "null": 1, "run": []},
        "preset.yaml": {"rate": 0.5},
        "args.yaml": {"size": [2, 2], "epochs": 7, "null": None},
    }.items():
        (tmp_path / name).write_text(yaml.safe_dump(written))
    files = "['configs/train.yaml','preset.yaml']"
    options = [f"--config_file={files}", "--args_file", "args.yaml", "--epochs", "3", "--part#kind=y"]
    given = read("run", "run", *options, "--logging_file=False")
    assert given is not None
    assert given.files == (tmp_path / "configs/train.yaml", tmp_path / "preset.yaml")
    merged = {"epochs": 3, "size": [2, 2], "part": {"kind": "y"}, "rate": 0.5, "null": None, "run": []}
    assert given.content == merged
    assert given.command.startswith("python -m monai.bundle run run '--config_file=[")
    assert read("run_workflow", *options) == given._replace(
        command=f"python -m monai.bundle run_workflow {shlex.join(options)}"
    )


@pytest.mark.parametrize(("program", "verb"), [("pytest", "run"), (PROGRAM, "verify_metadata")])
def test_another_command_gives_no_config(read: Read, program: str, verb: str) -> None:
    assert read(verb, program=program) is None
    assert sys.excepthook is sys.__excepthook__


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["2023", "007", "1e5", "1_000", "True", "None", "a b", "ünï", "a,b", "[a]", "data#1", "x@#1", "100%", "{a}", "(a)"],
)
@pytest.mark.parametrize("equals", [True, False])
def test_a_path_is_taken_as_it_was_typed(read: Read, text: str, equals: bool) -> None:
    typed = (
        [f"--dataset_dir={text}", f"--output-dir={text}"] if equals else ["--dataset_dir", text, "--output_dir", text]
    )
    given = read("run", "train", TRAIN, *typed, "--epochs", "3")
    found = content(given)
    assert (found["dataset_dir"], found["output_dir"], found["epochs"]) == (text, text, 3)
    assert path_of(given, "dataset_dir", "what MONAI makes of it") == text


def test_quotes_for_fire_are_no_part_of_a_path(read: Read) -> None:
    assert content(read("run", TRAIN, "--dataset_dir", "'2023'"))["dataset_dir"] == "2023"


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, read: Read) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of(read("run", TRAIN, "--cache_dir=~/cache"), "cache_dir", None) == str(tmp_path / "cache")


def test_what_is_no_path_of_a_command_stays() -> None:
    given = GivenConfig((), {"output_dir": "$@bundle_root", "resume": None, "dataset_dir": "medmnist:pneumoniamnist"})
    assert path_of(given, "output_dir", "/RUN") == "/RUN"
    assert path_of(given, "resume", None) is None
    assert path_of(given, "dataset_dir", given.content["dataset_dir"]) == "medmnist:pneumoniamnist"
    assert path_of(None, "output_dir", "out") == "out"


@pytest.mark.parametrize("text", ["$import os", "@network", "%bomb.yaml"])
def test_a_path_is_never_taken_for_code(read: Read, text: str) -> None:
    with pytest.raises(ValueError, match=r"--output_dir is .*: a config takes what begins with . for code\. .* \./"):
        read("run", TRAIN, "--output_dir", text)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--image_size=None"],
            'image_size when it is given as None. Expected two whole numbers, rows and columns, as "[',
        ),
        (
            ["--layout", "None"],
            "MONAI ignores the option layout when it is given as None. Expected one of auto, manifest",
        ),
        (["--optimizer=None"], "MONAI ignores the option optimizer when it is given as None. For null"),
        (["--init_id=other"], "--init_id would leave out the checks or messages of a run: omit it"),
        (["--final_id=other"], "--final_id would leave out the checks or messages of a run: omit it"),
        (["train", "other"], "--init_id would leave out the checks or messages of a run: omit it"),
        (["--epochs=3", "--epochs", "4"], "--epochs is given more than once, as '3' and '4': give it once"),
        (["--image-size=[3]", "--image_size", "[4]"], "--image_size is given more than once, as '[3]' and '[4]'"),
        (["--output_dir"], "--output_dir has no value: expected a path, or null."),
        (["--output_dir", "--epochs=3"], "--output_dir has no value: expected a path, or null."),
        (["--output_dir="], "--output_dir has no value: expected a path, or null."),
        (["--normal_classes"], '--normal_classes has no value: expected a list of names, as "[NORMAL]".'),
        (["--epochs"], "--epochs has no value: expected a whole number of 1 or more, or null."),
        (["--sucker"], "--sucker has no value: expected one behind it."),
        (["trian"], "There is no 'trian' to run (did you mean 'train'?): this config has run, train, prepare."),
        (["--run_id=normals"], "There is no 'normals' to run: this config has run, train, prepare."),
        (["datalist"], "There is no 'datalist' to run: this config has run, train, prepare."),
    ],
)
def test_wrong_use_is_refused_by_the_name_of_the_option(read: Read, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r"--|MONAI|There is") as raised:
        read("run", *arguments, TRAIN)
    assert message in str(raised.value)


@pytest.mark.parametrize("run_id", ["datalist", "evaluator", "train"])
def test_a_part_of_a_config_that_would_say_nothing_is_not_run(trained: Path, read: Read, run_id: str) -> None:
    config = f"--config_file={trained}/configs/inference.yaml"
    with pytest.raises(ValueError, match=f"There is no '{run_id}' to run: this config has run"):
        read("run", run_id, config)
    assert read("run", "run", config)
    assert read("run", config)


def test_a_switch_needs_no_value(read: Read) -> None:
    assert content(read("run", TRAIN, "--lesion_free_slices"))["lesion_free_slices"] is True
    read("run", TRAIN, "--network_def#score#published", "--seed", "1")

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from aeflow_monai.engine.workflow import announce, bundle_root, check_config, explain_errors, require_checkpoint
from aeflow_monai.files import home
from aeflow_monai.engine.workflow import keep_freed_memory

CHECK = {"initialize": ["$aeflow_monai.check_config()"], "imports": ["$import aeflow_monai"]}


def workflow_of(folder: Path, config: dict[str, Any], **options: Any) -> ConfigWorkflow:
    """A workflow of one config file in the folder `configs` of a bundle."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    file = folder / "configs/train.yaml"
    file.write_text(yaml.safe_dump(config))
    (folder / "configs/metadata.json").write_text("{}")
    return ConfigWorkflow(str(file), workflow_type=None, logging_file=False, **options)


def refusal(workflow: ConfigWorkflow) -> str:
    with pytest.raises(RuntimeError) as raised:
        workflow.initialize()
    assert isinstance(raised.value.__cause__, ValueError)
    return str(raised.value.__cause__)


def test_home_is_the_variable_or_below_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEFLOW_HOME", str(tmp_path / "place"))
    assert home("train", "logs") == str(tmp_path / "place/train/logs")
    monkeypatch.delenv("AEFLOW_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == str(tmp_path / ".aeflow_monai")
    assert not list(tmp_path.iterdir())


def test_home_is_absolute_whatever_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AEFLOW_HOME", "place")
    assert home() == str(tmp_path / "place")
    monkeypatch.setenv("AEFLOW_HOME", "")  # empty is as good as absent
    assert home() == str(Path.home() / ".aeflow_monai")


def test_bundle_root_is_above_the_configs_of_the_running_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"imports": ["$import aeflow_monai"], "run": "$1", "root": "$aeflow_monai.bundle_root()"}
    workflow = workflow_of(tmp_path / "my_bundle", config)
    workflow.initialize()
    monkeypatch.chdir(tmp_path)
    assert workflow.parser.get_parsed_content("root") == bundle_root() == "."  # not while the workflow is running
    config["initialize"] = ["$@roots.append(@root)"]
    config["roots"] = "$[]"
    workflow = workflow_of(tmp_path / "my_bundle", config)
    workflow.initialize()
    assert workflow.parser.get_parsed_content("roots") == [str(tmp_path / "my_bundle")]


def test_bundle_root_of_a_config_that_is_only_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundle_root() == "."
    (tmp_path / "bundle/configs").mkdir(parents=True)
    (tmp_path / "bundle/configs/metadata.json").touch()
    assert bundle_root() == "bundle"


def test_keys_that_are_read_are_accepted(tmp_path: Path) -> None:
    config = {
        **CHECK,
        "rate": 0.1,
        "size": "$@rate * 2",
        "train": {"batch": 3, "sampler": {"kind": "x", "step": "@size"}, "inferer": None},
        "whole": {"one": 1, "two": {"three": 3}},
        "run": ["$@train#batch", "$len(@train#sampler)", "$list(@whole.items())"],
    }
    workflow_of(tmp_path, config).initialize()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"raet": 1}, "'raet' (did you mean 'rate'?)"),
        ({"train": {"batch": 3, "bacth": 4}}, "'train#bacth' (did you mean 'train#batch'?)"),
        ({"trian": {"batch": 3}}, "'trian#batch' (did you mean 'train#batch'?)"),
        ({"qqqq": {}}, "'qqqq'."),
        ({"part": {"_target_": "torch.nn.Identity"}}, "'part'"),
    ],
)
def test_a_key_that_nothing_reads_is_refused_by_its_name(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    config = {**CHECK, "rate": 0.1, "train": {"batch": 3}, "run": ["$@train#batch + @rate"], **wrong}
    said = refusal(workflow_of(tmp_path, config))
    assert said.startswith("The config has keys that nothing reads: ")
    assert message in said
    assert "overlay file or on the command line" in said


def test_every_unread_key_is_named_at_once(tmp_path: Path) -> None:
    config = {**CHECK, "train": {"batch": 3}, "run": "$@train#batch", "zz1": 1}
    said = refusal(workflow_of(tmp_path, config, zz2=2, **{"train#zz3": 3}))
    assert all(f"{name!r}" in said for name in ("zz1", "zz2", "train#zz3"))


def test_options_of_another_config_of_the_bundle_are_accepted(tmp_path: Path) -> None:
    workflow = workflow_of(tmp_path, {**CHECK, "run": "$1"}, sw_batch_size=4)
    assert "'sw_batch_size'" in refusal(workflow)
    other = tmp_path / "configs/inference.yaml"
    other.write_text("sw_batch_size: 1\n")
    assert "'sw_batch_size'" in refusal(workflow)  # which that config does not read either
    other.write_text("sw_batch_size: 1\nrun: $@sw_batch_size\n")
    workflow.initialize()


def test_check_config_works_inside_of_a_workflow_only() -> None:
    with pytest.raises(RuntimeError, match="`initialize`"):
        check_config()


def test_the_shipped_configs_hold_no_unread_key() -> None:
    configs = Path(__file__).parent.parent / "bundle/configs"
    parser = ConfigParser()
    for files in (
        ["train"],
        ["train", "evaluate"],
        ["train", "calibrate"],
        ["train", "multi_gpu_train"],
        ["train", "semi_supervised"],
        ["inference"],
    ):
        parser = ConfigParser()
        parser.read_config([str(configs / f"{name}.yaml") for name in files])
        parser["initialize"] = "$aeflow_monai.check_config()"
        assert parser.get_parsed_content("initialize") is None


def report_of(
    fail: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """What stands on stderr after a run whose error nothing caught."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    explain_errors()
    try:
        fail()
    except BaseException:
        kind, error, trace = sys.exc_info()
        assert kind is not None
        assert error is not None
        sys.excepthook(kind, error, trace)
    return capsys.readouterr().err.strip().splitlines()


def test_the_last_line_is_what_began_the_failure_below_the_wrapping_of_monai(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent.pt"
    config = {
        "imports": ["$import aeflow_monai"],
        "model": f"$aeflow_monai.require_checkpoint('{absent}')",
        "run": "$@model",
    }
    workflow = workflow_of(tmp_path, config)
    workflow.initialize()
    lines = report_of(workflow.run, monkeypatch, capsys)
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith(f"The run failed: There is no trained model at {absent}. Train one first")


def test_the_last_line_is_the_remedy_and_not_what_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # the encoder's message stands above an IndexError that says nothing to the user
    config = {"encoder": {"_target_": "aeflow_monai.Encoder", "stages": [9], "weights": "random"}, "run": "$@encoder"}
    workflow = workflow_of(tmp_path, config)
    workflow.initialize()
    lines = report_of(workflow.run, monkeypatch, capsys)
    assert lines[-1] == "The run failed: tf_efficientnet_lite0 has feature stages 0 to 4; got stages=[9]."


def test_the_last_line_of_a_misspelt_argument_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"loss": {"_target_": "aeflow_monai.AEFlowLoss", "alhpa": 0.5}, "run": "$@loss"}
    workflow = workflow_of(tmp_path, config)
    workflow.initialize()
    lines = report_of(workflow.run, monkeypatch, capsys)
    assert lines[-1].startswith("The run failed: ")
    assert "'alhpa'" in lines[-1]


def test_what_the_user_stopped_did_not_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    assert report_of(stop, monkeypatch, capsys)[-1] == "KeyboardInterrupt"


def test_a_checkpoint_that_is_there_is_enough(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    require_checkpoint(str(tmp_path / "model.pt"))
    with pytest.raises(FileNotFoundError, match=r"train\.yaml.*--ckpt_path.*--output_dir"):
        require_checkpoint(str(tmp_path))  # a folder is no model


def test_announce_names_what_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    announce(maps_and_scores="out", absent="nowhere")
    assert capsys.readouterr().out.splitlines() == [
        f"maps and scores: {tmp_path / 'out'}",
        "Research use only. Not a medical device.",
    ]


def test_the_allocator_can_be_tuned_twice() -> None:
    keep_freed_memory()
    keep_freed_memory()

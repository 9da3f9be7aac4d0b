from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser
from outputs import said

from aeflow_monai import Workflow
from aeflow_monai.engine.config.config_content import (
    Difference,
    differences,
    ids_of,
    refuse_unknown_keys,
    with_references,
)
from aeflow_monai.engine.config.template import config_files, require_order, template_root
from aeflow_monai.engine.config.workflow import GivenConfig, bundle_root

KNOWN = {"rate": 0.1, "train": {"batch": 3}, "run": ["$@train#batch + @rate"]}


def written(folder: Path, content: dict[str, Any], name: str = "configs/train.yaml") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(yaml.safe_dump(content))
    return folder / name


# --- configs by their name --------------------------------------------------------------------------------------------


def test_configs_are_found_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("train", "multi_gpu_train", "chest_xray", "healthy_t1", "brats2021", "paper", "semi_supervised")
    files = [Path(file) for file in config_files(*names)]
    assert [file.stem for file in files] == list(names)
    assert all(file.is_absolute() and file.is_file() for file in files)
    assert files[0] == template_root() / "configs/train.yaml"


def test_a_file_of_ones_own_is_a_config_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, {"epochs": 3}, "mine.yaml")
    assert config_files("train", "mine.yaml")[1] == config_files(str(file))[0] == str(file)


@pytest.mark.parametrize("name", ["chestxray", "chest_xray.yml", "configs"])
def test_an_unknown_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    with pytest.raises(ValueError, match=f"There is no config '{name}': choose one of .*chest_xray.*path of a file"):
        config_files("train", name)


# --- what was given ---------------------------------------------------------------------------------------------------


def test_a_workflow_knows_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"a": {"b": 1, "c": "@d#e"}, "d": {"e": "$@##a#b"}, "given": "$aeflow_monai.engine.given_config()"}
    written(tmp_path, config)
    written(tmp_path, {"a#b": 2, "+d": {"f": 3}}, "preset.yaml")
    files = ["configs/train.yaml", "preset.yaml"]
    given = Workflow(files, workflow_type=None, logging_file=False, **{"d#f": 4}).parser["given"]
    assert given.files == (tmp_path / files[0], tmp_path / files[1])
    # as people write it: references with #, relative ones resolved, nothing instantiated
    d = {"e": "$@a#b", "f": 4}
    assert given.content == {"a": {"b": 2, "c": "@d#e"}, "d": d, "given": config["given"]}
    assert given.command == ""


def test_what_is_set_before_the_run_begins_is_given_too(trained: Path, volumes: Path) -> None:
    options = {"dataset_dir": str(volumes), "workflow_type": "infer", "logging_file": False}
    workflow = Workflow(str(trained / "configs/inference.yaml"), **options)
    workflow.parser["image_size"] = [128, 128]
    with pytest.raises(RuntimeError) as raised:
        workflow.initialize()
    assert "image_size (trained with [64, 64], given [128, 128])" in said(raised)


def test_the_root_of_a_bundle_is_above_its_configs(tmp_path: Path) -> None:
    assert bundle_root(None) == "."
    assert bundle_root(GivenConfig((tmp_path / "RUN/configs/train.yaml",), {})) == str(tmp_path / "RUN")
    assert bundle_root(GivenConfig((tmp_path / "mine/train.yaml", tmp_path / "b"), {})) == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["chest_xray", "train"],
            r"train\.yaml would replace the options of .*chest_xray\.yaml, which stands before it",
        ),
        (["train", "train"], r"one config and its presets; got 2 that stand alone, .*train\.yaml and .*train\.yaml"),
        (["train", "paper", "{trained}/configs/inference.yaml"], r"got 2 that stand alone, .*train.* and .*inference"),
    ],
)
def test_configs_that_replace_each_other_are_refused(trained: Path, names: list[str], message: str) -> None:
    files = config_files(*(name.format(trained=trained) for name in names))
    with pytest.raises(ValueError, match=message):
        require_order([Path(file) for file in files])


def test_presets_stand_behind_their_config() -> None:
    require_order([Path(file) for file in config_files("train", "multi_gpu_train", "chest_xray", "paper")])
    require_order([])


# --- keys that nothing reads ------------------------------------------------------------------------------------------


def test_keys_that_are_read_are_accepted() -> None:
    config = {
        "rate": 0.1,
        "size": "$@rate * 2",
        "train": {"batch": 3, "sampler": {"kind": "x", "step": "@size"}, "inferer": None},
        "whole": {"one": 1, "two": {"three": 3}},
        "run": ["$@train#batch", "$len(@train#sampler)", "$list(@whole.items())"],
    }
    refuse_unknown_keys(config)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"raet": 1}, "'raet' (did you mean 'rate'?)"),
        ({"fit": 1, "slicer": {"_target_": "X", "fit": 2}}, "'fit' (did you mean 'slicer#fit'?)"),
        ({"train": {"batch": 3, "bacth": 4}}, "'train#bacth' (did you mean 'train#batch'?)"),
        ({"trian": {"batch": 3}}, "'trian#batch' (did you mean 'train#batch'?)"),
        ({"qqqq": {}}, "'qqqq'."),
        ({"zzzb": 1, "zzzc": 2}, "'zzzb', 'zzzc'."),
        ({"part": {"_target_": "torch.nn.Identity"}}, "'part'"),
    ],
)
def test_a_key_that_nothing_reads_is_refused_by_its_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^The config has keys that nothing reads: ") as raised:
        refuse_unknown_keys({**KNOWN, **wrong})
    assert message in str(raised.value)
    assert "Check the spelling in the config file or on the command line" in str(raised.value)


def test_every_unread_key_is_named_at_once() -> None:
    with pytest.raises(ValueError, match="keys that nothing reads") as raised:
        refuse_unknown_keys({**KNOWN, "train": {"batch": 3, "zz3": 3}, "zz1": 1, "zz2": 2})
    assert all(f"{name!r}" in str(raised.value) for name in ("zz1", "zz2", "train#zz3"))


def test_keys_that_are_known_otherwise_are_accepted() -> None:
    known = {"lesion_copies": 0, "train": {"sampler": {"_target_": "x"}}}
    refuse_unknown_keys({**KNOWN, "lesion_copies": 3, "train": {"batch": 3, "sampler": {}}}, also_known=ids_of(known))
    with pytest.raises(ValueError, match=r"'train#smapler' \(did you mean 'train#sampler'\?\)"):
        refuse_unknown_keys({**KNOWN, "train": {"batch": 3, "smapler": {}}}, also_known=ids_of(known))


# --- comparing --------------------------------------------------------------------------------------------------------


def test_differences_are_found_in_parts() -> None:
    first = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "same": {"x": (1, 2)}}
    second = {"a": 1, "b": {"c": [1, 3], "d": {"e": 0}}, "same": {"x": [1, 2]}, "new": True}
    assert list(differences(first, second)) == [
        Difference("b#c", [1, 2], [1, 3]),
        Difference("b#d#e", None, 0),
        Difference("new", None, True),
    ]
    assert list(differences(first, first)) == []


def test_a_part_is_found_with_all_that_it_refers_to() -> None:
    config = {
        "size": [64, 64],
        "unused": 1,
        "slicer": {"size": "@size", "axes": "$@axes + @network#planes"},
        "axes": ["axial"],
        "network": {"planes": "@planes"},
        "planes": [],
    }
    assert with_references(config, ["slicer"]) == ["size", "slicer", "axes", "network", "planes"]
    assert with_references(config, ["absent"]) == []


def test_ids_go_into_plain_sections_only() -> None:
    config = ConfigParser({"a": {"b": {"c": 1}, "d": {"_target_": "x", "e": 1}}, "f": [{"g": 1}], "h": {}}).get()
    assert [name for name in ids_of(config) if name != "_meta_"] == ["a::b::c", "a::d", "f", "h"]

import json
import time
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from aeflow_monai import Model, Workflow
from aeflow_monai.cli.main import main
from aeflow_monai.engine.config.config_text import read_config, read_configs
from aeflow_monai.engine.config.template import config_files, template_root

# Billions of values in a few lines.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
HOSTILE = {
    "bomb.yaml": (BOMB, "its references stand for more than 100000 values"),
    "mapping_bomb.yaml": (BOMB.replace("[", "{k: [").replace("]", "]}"), "its references stand for more than"),
    "cycle.yaml": ("a: &a {b: [*a]}", "a reference in it contains itself"),
    "deep.yaml": ("a: " + "[" * 100_000, "it is nested more than 50 levels deep"),
    "deep_blocks.yaml": ("\n".join(" " * n + "a:" for n in range(300)), "it is nested more than 50 levels deep"),
    "deep.json": ("[" * 100_000, "it is nested too deep"),
    "large.yaml": ("a: " + "x" * 2**20, "it has 1048579 bytes, and a config at most 131072"),
    "object.yaml": ("a: !!python/object/apply:os.system [touch hacked]", "python/object/apply:os.system"),
    "name.yaml": ("a: !!python/name:os.system", "python/name:os.system"),
    "twice.yaml": ("epochs: 3\nepochs: 4", "the key 'epochs' stands twice"),
    "twice.json": ('{"epochs": 3, "epochs": 4}', "the key 'epochs' stands twice"),
    "wrong.yaml": ("a: [1, 2", "line 1, column"),
    "wrong.json": ("{", "Expecting property name"),
    "list.yaml": ("[1, 2]", "expected keys with values"),
    "text.yaml": ("epochs", "expected keys with values"),
    "bytes.yaml": (b"a: \xff\xfe", "can't decode byte 0xff"),
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_ends_at_once_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    file = write(tmp_path / name, content)
    began = time.process_time()
    with pytest.raises(ValueError, match="is no config: ") as raised:
        read_config(file)
    assert message in str(raised.value)
    assert str(file) in str(raised.value)
    with pytest.raises(ValueError, match="is no config: "):
        config_files("train", name)
    with pytest.raises(ValueError, match="is no config: "):
        Workflow([*config_files("train"), str(file)], logging_file=False)
    assert main(["config", "train", name]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{name} is no config: " in said.err
    assert time.process_time() - began < 5
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["configs/inference.yaml", "configs/metadata.json"])
@pytest.mark.parametrize("hostile", ["bomb", "deep", "object"])
def test_a_bundle_with_a_hostile_file_is_not_opened(bundle: Path, name: str, hostile: str) -> None:
    content = HOSTILE[f"{hostile}.yaml"][0]
    write(bundle / name, "[" * 100_000 if name.endswith("json") else content)
    began = time.process_time()
    with pytest.raises(ValueError, match=f"{Path(name).name} is no config"):
        Model(bundle)
    assert time.process_time() - began < 5


def test_what_people_write_is_read(tmp_path: Path) -> None:
    text = "sizes: &sizes [64, 64]\nimage_size: *sizes\ndevice: $get_device()\n'é': ü"
    expected = {"sizes": [64, 64], "image_size": [64, 64], "device": "$get_device()", "é": "ü"}
    assert read_config(write(tmp_path / "a.yaml", text)) == expected
    assert read_config(write(tmp_path / "b.yaml", b"\xef\xbb\xbfepochs: 3")) == {"epochs": 3}
    assert read_config(write(tmp_path / "c.yaml", "# nothing yet")) == {}
    assert read_config(write(tmp_path / "d.json", json.dumps({"a": [1, None]}))) == {"a": [1, None]}
    for file in (template_root() / "configs").glob("*.[yj]*"):
        assert read_config(file)


def test_what_was_read_before_may_be_changed_here_and_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "image_size: [64, 64]")
    read_config(path)["image_size"].append(1)
    assert read_config(path) == {"image_size": [64, 64]}
    assert read_config(write(path, "image_size: [32, 32]")) == {"image_size": [32, 32]}


@pytest.mark.parametrize("preset", ["chest_xray", "multi_gpu_train"])
def test_configs_are_merged_as_monai_merges_them(tmp_path: Path, preset: str) -> None:
    own = write(tmp_path / "own.yaml", "+imports: [$import os]\ntrain#slices#step: 3\n")
    parser = ConfigParser()
    files = [*config_files("train", preset), str(own)]
    parser.read_config(files)
    merged = read_configs(files)
    assert merged == {name: value for name, value in parser.get().items() if name in merged}
    assert merged["train"]["slices"]["step"] == 3

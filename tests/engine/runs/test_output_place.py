from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outputs import said

from aeflow_monai.engine.runs.output_place import require_writable

Run = Callable[..., Any]


def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    require_writable(tmp_path, "output_dir")
    require_writable(tmp_path / "new/RUN", "output_dir")
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "RUN"
    file.touch()
    for place in (file, file / "below/it"):
        with pytest.raises(NotADirectoryError, match=f"output_dir: expected a folder; got the file {file}"):
            require_writable(place, "output_dir")
    assert file.stat().st_size == 0


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no folder that nobody can write to")
@pytest.mark.parametrize("option", ["output_dir", "cache_dir"])
def test_a_folder_that_cannot_be_written_is_found_before_any_image_is_read(
    tmp_path: Path, volumes: Path, start_workflow: Run, tiny_training: dict[str, Any], option: str
) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "RUN"), option: "/proc/self/RUN"}
    with pytest.raises(RuntimeError) as raised:
        start_workflow("train.yaml", **tiny_training, **where)
    assert said(raised).startswith(f"{option}: nothing can be written to /proc/self/RUN: ")
    assert f"Give another one with --{option}." in said(raised)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["train", "inference", "evaluate", "calibrate"])
def test_data_that_are_empty_are_refused_before_anything_is_written(
    tmp_path: Path, trained: Path, start_workflow: Run, verb: str
) -> None:
    (tmp_path / "data").mkdir()
    config = "train.yaml" if verb == "train" else trained / f"configs/{verb}.yaml"
    with pytest.raises(RuntimeError) as raised:
        start_workflow(config, dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "RUN"))
    assert said(raised) == f"dataset_dir: expected a folder of images; got an empty one, {tmp_path / 'data'}."
    assert [path.name for path in tmp_path.iterdir()] == ["data"]

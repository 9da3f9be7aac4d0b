from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow
from outputs import said

from aeflow_monai import Workflow, config_files
from aeflow_monai.engine.verbs import announce, begin_scoring, begin_training

Run = Callable[..., Any]


def test_a_training_has_to_know_its_config(volumes: Path, tmp_path: Path) -> None:
    options = {"dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    workflow = ConfigWorkflow(config_files("train"), workflow_type="train", logging_file=False, **options)
    with pytest.raises(RuntimeError) as raised:
        workflow.initialize()
    assert "use aeflow_monai.Workflow in place of monai.bundle.ConfigWorkflow" in said(raised)
    assert not list(tmp_path.iterdir())


def test_a_training_says_where_it_writes_and_with_which_seed(volumes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workflow = Workflow(config_files("train"), logging_file=False, dataset_dir=str(volumes))
    begin_training(workflow.parser["given"], "somewhere", 3)
    assert capsys.readouterr().out.endswith("seed: 3\noutput folder: somewhere\n")


def test_data_have_to_be_named(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"Say where the images are with --dataset_dir <folder>\."):
        begin_scoring(
            Workflow(str(trained / "configs/inference.yaml"), logging_file=False).parser["given"], str(trained), None
        )
    workflow = Workflow(str(trained / "configs/train.yaml"), workflow_type="train", logging_file=False)
    with pytest.raises(ValueError, match=r"Say where the images are with --dataset_dir <folder>\."):
        begin_training(workflow.parser["given"], str(trained), 0)


@pytest.mark.parametrize("verb", ["train", "inference", "evaluate", "calibrate"])
def test_nothing_is_written_among_the_images(trained: Path, volumes: Path, verb: str) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": f"{volumes}/../{volumes.name}", "logging_file": False}
    configs = config_files("train") if verb == "train" else [str(trained / f"configs/{verb}.yaml")]
    with pytest.raises(RuntimeError) as raised:
        Workflow(configs, workflow_type="train" if verb == "train" else "infer", **where).initialize()
    assert f"output_dir is the folder of the images, {volumes}: what is written there would be taken for" in said(
        raised
    )


@pytest.mark.parametrize("verb", ["inference", "evaluate"])
def test_nothing_is_written_among_the_files_of_the_model(trained: Path, volumes: Path, verb: str) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": str(trained), "logging_file": False}
    with pytest.raises(RuntimeError) as raised:
        Workflow([str(trained / f"configs/{verb}.yaml")], workflow_type="infer", **where).initialize()
    assert f"output_dir is the folder of the model, {trained}: results would lie among its files" in said(raised)


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

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow
from outputs import said

from aeflow_monai import Workflow, config_files
from aeflow_monai.engine.verbs import (
    announce,
    begin_scoring,
    begin_training,
    lesion_copies,
    number_of_epochs,
)

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("n_slices", "options", "expected"),
    [
        (1600, {}, 4),
        (80, {}, 34),
        (8, {}, 200),
        (8, {"epochs": 3}, 3),
        (80, {"min_steps": 100}, 20),
        (80, {"batch_size": 8}, 17),
        (1600, {"copies": 1}, 2),
        (1600, {"copies": 3}, 1),
        (80, {"copies": 1}, 17),
    ],
)
def test_small_sets_are_gone_through_more_often(n_slices: int, options: dict[str, int], expected: int) -> None:
    assert number_of_epochs(**{"epochs": None, "n_slices": n_slices, "batch_size": 16, **options}) == expected


@pytest.mark.parametrize(
    ("n_slices", "copies", "expected"), [(1600, None, 1), (80, None, 7), (8, None, 10), (80, 2, 2), (80, 0, 0)]
)
def test_small_sets_get_more_synthetic_lesions(n_slices: int, copies: int | None, expected: int) -> None:
    assert lesion_copies(copies, n_slices) == expected


@pytest.mark.parametrize(("acquisition_copies", "expected"), [(0, 14), (1, 7), (3, 4)])
def test_the_training_counts_epochs_and_copies_by_its_slices(
    tmp_path: Path,
    volumes: Path,
    start_workflow: Run,
    tiny_training: dict[str, Any],
    acquisition_copies: int,
    expected: int,
) -> None:
    copies = {"lesion_copies": None, "acquisition_copies": acquisition_copies}
    options = {**tiny_training, **copies, "epochs": None}
    parser = start_workflow("train.yaml", **options, dataset_dir=str(volumes), output_dir=str(tmp_path)).parser
    n_slices = len(parser.get_parsed_content("train#slices"))
    n_copies = acquisition_copies + lesion_copies(None, n_slices)
    assert len(parser.get_parsed_content("train#dataset")) == (1 + n_copies) * n_slices
    assert parser.get_parsed_content("train#trainer").state.max_epochs == expected
    # the calibration gets all slices as they are, and by themselves their copies
    slices = parser.get_parsed_content("train#slices")
    of_calibration = [parser.get_parsed_content(f"train#{name}") for name in ("trained", "varied")]
    images = [[image for batch in loader for image in batch["image"]] for loader in of_calibration]
    assert list(map(len, images)) == [n_slices, acquisition_copies * n_slices]
    assert all(torch.equal(image, item["image"]) for image, item in zip(images[0], slices, strict=True))
    assert not any(torch.equal(image, slices[number % n_slices]["image"]) for number, image in enumerate(images[1]))


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

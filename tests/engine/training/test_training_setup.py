from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aeflow_monai.data.datalist.unused import Datalist, Unused
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.training.training_setup import lesion_copies, number_of_epochs, report_notes

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


@pytest.mark.parametrize(
    ("options", "reported"), [({}, ["a", "b"]), ({"labelled_abnormal": None}, ["a"])], ids=["normals", "labelled too"]
)
def test_a_training_reports_what_it_does_not_use(
    options: dict[str, Any], reported: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    normals = Datalist([], Unused(Path()), "classes")
    normals.notes = {"series": "a", "abnormal": "b"}
    report_notes(normals, GivenConfig((), options))
    assert [record.message for record in caplog.records] == reported

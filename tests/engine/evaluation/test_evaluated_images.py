import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aeflow_monai import Model, load_datalist
from aeflow_monai.engine import load_test
from aeflow_monai.engine.bundles.bundle import write_bundle
from aeflow_monai.engine.config.stored_model import model_path, read_model

LISTING = {"normal_classes": ["NORMAL"]}


@pytest.fixture
def put(volumes: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies images of the embedded data set into class folders without a split."""

    def put(**classes: list[dict[str, Any]]) -> Path:
        for name, items in classes.items():
            for item in items:
                folder = tmp_path / "other" / name
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(item["image"], folder / f"{item['case']}.nii.gz")
        return tmp_path / "other"

    return put


def test_all_images_of_another_hospital_are_tested(
    volumes: Path, trained: Path, put: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    test = load_datalist(volumes, "test")
    other = put(NORMAL=[item for item in test if not item["label"]], sick=[item for item in test if item["label"]])
    caplog.set_level("INFO")
    items = load_test(other, trained, LISTING)
    assert {item["case"]: item["label"] for item in items} == {item["case"]: item["label"] for item in test}
    assert "has no split, and the model knows none of its images: all are tested" in caplog.text


def test_images_that_the_model_knows_are_no_test(volumes: Path, trained: Path, put: Callable[..., Path]) -> None:
    test = load_datalist(volumes, "test")
    other = put(NORMAL=load_datalist(volumes, "train")[:2], sick=[item for item in test if item["label"]])
    with pytest.raises(ValueError, match=r"no split, and the model was trained or calibrated on 2 of its 5 images"):
        load_test(other, trained, LISTING)


def test_a_data_set_without_a_split_and_without_disease(volumes: Path, trained: Path, put: Callable[..., Path]) -> None:
    other = put(NORMAL=load_datalist(volumes, "test")[:2])
    with pytest.raises(ValueError, match=r"All 2 are normal; an evaluation needs abnormal images too"):
        load_test(other, trained, LISTING)


def test_a_split_without_test_images(volumes: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "split/train/NORMAL"
    folder.mkdir(parents=True)
    shutil.copy(load_datalist(volumes, "train")[0]["image"], folder / "a.nii.gz")
    with pytest.raises(ValueError, match=r"holds no image for the section 'test'; found 1 in train\."):
        load_test(tmp_path / "split", trained, LISTING)


def test_the_fraction_of_the_training_divides_its_own_data_alone(
    volumes: Path, trained: Path, tmp_path: Path, put: Callable[..., Path]
) -> None:
    stored, divided = read_model(model_path(trained)), {**LISTING, "test_fraction": 0.4}
    write_bundle(tmp_path / "RUN", Model(trained).detector, {**stored.config, "test_fraction": 0.4}, stored.card)
    test = load_datalist(volumes, "test")
    abnormal = [item for item in test if item["label"]]
    other = put(NORMAL=[item for item in test if not item["label"]], sick=abnormal)
    assert len(load_test(other, tmp_path / "RUN", divided)) == 6
    assert len(load_test(other, trained, divided)) == 2  # which was trained without, so that this was asked for
    assert load_test(volumes, tmp_path / "RUN", divided) == test  # which has a split of its own
    with pytest.raises(ValueError, match="says itself what is trained and tested on"):
        load_test(volumes, trained, divided)
    own = put(NORMAL=load_datalist(volumes, "train"))
    assert load_test(own, tmp_path / "RUN", divided) == load_datalist(own, "test", **divided)


def test_a_test_split_is_taken_as_it_is_and_without_a_model_too(volumes: Path, trained: Path, tmp_path: Path) -> None:
    for folder in (trained, tmp_path):
        assert load_test(volumes, folder, {}) == load_datalist(volumes, "test")

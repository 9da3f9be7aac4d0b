"""The store of models; it needs no MONAI Label."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from outputs import BUNDLE, contents, files_below

from aeflow_monai import predict
from aeflow_monai.label import models
from aeflow_monai.label.models import ModelStore, require_bundle


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "model")


@pytest.fixture(scope="module")
def other(
    trained: Path, volumes: Path, run_workflow: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Another bundle: the same network with other thresholds."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "normals").mkdir()
    for image in (volumes / "images").glob("test_normal_*"):
        shutil.copy(image, folder / "normals")
    where = {"dataset_dir": str(folder / "normals"), "output_dir": str(folder / "SITE")}
    run_workflow(trained / "configs/calibrate.yaml", **where, specificity=0.5)
    return folder / "SITE"


def test_a_bundle_is_taken_in_once_and_without_its_logs(store: ModelStore, trained: Path, other: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no model yet"):
        store.require()
    assert store.add(trained, imported_from="RUN") == 1
    assert files_below(store.folder_of(1)) == BUNDLE | {"record.json"}
    record = json.loads((store.folder_of(1) / "record.json").read_text())
    assert record.pop("written")
    thresholds = store.open(1, "cpu").detector.score.thresholds
    assert record == {"version": 1, "thresholds": thresholds, "imported_from": "RUN"}
    assert store.trained_on(1) == set()
    assert store.add(other, trained_on=["a"]) == store.require() == 2
    assert store.trained_on(2) == {"a"}
    # the same again, wherever it lies
    assert store.add(trained) == store.add(store.folder_of(1)) == 1
    assert store.versions() == [1, 2]


def test_a_version_answers_like_the_bundle_that_it_was(store: ModelStore, trained: Path, other: Path) -> None:
    image = torch.rand(40, 30, 5, generator=torch.Generator().manual_seed(0))
    for version, folder in ((store.add(trained), trained), (store.add(other), other)):
        opened = store.open(version, "cpu")
        assert store.open(version, "cpu") is opened
        found, expected = opened.predict(image), predict(image, folder)
        assert found.anomaly_score == expected.anomaly_score
        assert found.thresholds == expected.thresholds
        assert torch.equal(found.anomaly_map, expected.anomaly_map)


def test_a_model_that_was_removed_is_not_used_and_its_number_is_not_given_again(
    store: ModelStore, trained: Path, other: Path
) -> None:
    store.add(trained)
    store.add(other)
    file = store.folder_of(2) / "models/model.pt"
    file.rename(file.with_suffix(".pt.deleted"))  # as MONAI Label does when a client removes it
    assert store.newest() == 1
    assert store.add(other) == 3


def test_what_breaks_off_leaves_nothing(
    store: ModelStore, trained: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(trained)
    before = contents(store.folder)

    def fail(*arguments: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(models, "write_json", fail)
    with pytest.raises(OSError, match="no space left"):
        store.add(other)
    assert contents(store.folder) == before
    assert [path.name for path in store.folder.iterdir()] == ["v1"]


def test_what_is_no_bundle_is_refused(trained: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Expected the folder of a bundle at"):
        require_bundle(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"Give the folder that its training wrote, in which it is models/model\.pt"):
        require_bundle(trained / "models/model.pt")
    with pytest.raises(FileNotFoundError, match="There is no trained model at"):
        require_bundle(tmp_path)
    torch.save({"model": {"aeflow.weight": torch.zeros(1)}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"of another version of aeflow_monai.*Train again with this version"):
        require_bundle(tmp_path / "model.pt")
    mixed = Path(shutil.copytree(trained, tmp_path / "mixed"))
    shutil.copy(other / "models/model.pt", mixed / "models")
    with pytest.raises(ValueError, match="is not the model that the bundle in"):
        require_bundle(mixed)

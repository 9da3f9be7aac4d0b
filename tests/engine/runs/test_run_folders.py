import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from outputs import given_of

from aeflow_monai.data import find_images
from aeflow_monai.engine.config.stored_model import model_path
from aeflow_monai.engine.evaluation.score_writer import ScoreWriter
from aeflow_monai.engine.runs.run_folders import begin_bundle, begin_cache, begin_results
from aeflow_monai.engine.runs.run_record import RunRecord, finish_record
from aeflow_monai.files import unfinished_path
from aeflow_monai.locks import release_folder
from aeflow_monai.marks import mark_nifti
from aeflow_monai.result_files import PLACE_COLUMNS, RUN_RECORD
from aeflow_monai.result_tables import Table

LOCK = {".lock", ".lock.json"}


def files_below(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def begin(tmp_path: Path, trained: Path) -> Callable[..., Path]:
    """Begins the results of an inference in one folder, and lets it have its first case."""

    def begin(overwrite: bool = False, n_cases: int = 1, **options: Any) -> Path:
        folder = tmp_path / "maps"
        given = given_of(trained / "configs/inference.yaml", output_dir=str(folder), **options)
        record = RunRecord(folder, [{"case": "a", "image": "a.nii.gz"}])
        begin_results(record, given, trained, overwrite)
        engine = Engine(lambda engine, batch: None)
        engine.register_events(*IterationEvents)
        record.attach(engine)
        for _ in range(n_cases):
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        return folder

    return begin


def test_the_record_says_what_lies_among_the_images_and_is_not_used(tmp_path: Path, trained: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_map(scans / "a.nii.gz", marked=False)
    write_map(scans / "a_anomaly_map.nii.gz")
    (scans / "notes.txt").touch()
    record = RunRecord(tmp_path / "maps", find_images(scans))
    begin_results(record, given_of(trained / "configs/inference.yaml", dataset_dir=str(scans)), trained)
    unused = json.loads((tmp_path / "maps" / RUN_RECORD).read_text())["unused"]
    assert (unused["outputs of earlier runs"], unused["files of other kinds"]) == (1, 1)
    paths = {"outputs of earlier runs": ["a_anomaly_map.nii.gz"], "files of other kinds": ["notes.txt"]}
    assert unused["paths"] == paths
    release_folder(tmp_path / "maps")


def write_map(path: Path, marked: bool = True) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
    if marked:
        mark_nifti(image.header, "anomaly_map")
    nib.save(image, path)


def write_results(folder: Path) -> None:
    write_map(folder / "a_anomaly_map.nii.gz")
    writer = ScoreWriter(folder / "scores.csv")
    writer.start(Engine(lambda engine, batch: None))
    Table(folder / "slice_scores.csv", ["case", *PLACE_COLUMNS, "kind", "anomaly_score"]).finish()
    (folder / "metrics.json").write_text('{"auroc": 0.5}')
    (folder / "notes.txt").write_text("mine")


def test_results_begin_with_a_record_and_end_with_a_finished_one(begin: Callable[..., Path], trained: Path) -> None:
    folder = begin(dataset_dir="scans")
    assert files_below(folder) == LOCK | {RUN_RECORD}
    record = json.loads((folder / RUN_RECORD).read_text())
    assert record["state"] == "unfinished"
    assert (record["options"]["dataset_dir"], record["options"]["output_dir"]) == ("scans", str(folder))
    assert record["model"]["file"] == str(model_path(trained))
    finish_record(folder / RUN_RECORD, n_cases=3)
    again = json.loads((folder / RUN_RECORD).read_text())
    assert (again["state"], again["n_cases"]) == ("finished", 3)
    assert again["ended"] >= again["started"] == record["started"]


def test_results_of_the_same_interrupted_run_are_made_again(begin: Callable[..., Path]) -> None:
    write_results(begin(dataset_dir="scans"))
    assert files_below(begin(dataset_dir="scans")) == LOCK | {RUN_RECORD, "notes.txt"}


@pytest.mark.parametrize(
    ("options", "is_finished"), [({"dataset_dir": "scans"}, True), ({"dataset_dir": "others"}, False)]
)
def test_results_of_another_run_are_named_and_kept_until_they_are_to_be_replaced(
    begin: Callable[..., Path], options: dict[str, Any], is_finished: bool
) -> None:
    folder = begin(dataset_dir="scans")
    write_results(folder)
    if is_finished:
        finish_record(folder / RUN_RECORD)
    before = files_below(folder) - LOCK
    state = "finished" if is_finished else "unfinished"
    message = rf"holds the results of a run on scans that began at 20.* and is {state}.*--overwrite True"
    with pytest.raises(ValueError, match=message):
        begin(**options)
    assert files_below(folder) == before
    assert files_below(begin(overwrite=True, **options)) == LOCK | {RUN_RECORD, "notes.txt"}


def test_results_without_a_record_or_with_a_broken_one_are_named_too(
    begin: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    write_map(folder / "a_anomaly_map.nii.gz")
    with pytest.raises(ValueError, match=r"holds the results of a run that has left no run\.json"):
        begin()
    (folder / RUN_RECORD).write_text('{"state": "fin')
    with pytest.raises(ValueError, match=r"holds run\.json, which no run of this package wrote"):
        begin(overwrite=True)
    (folder / RUN_RECORD).unlink()
    begin(overwrite=True)


def test_results_stay_until_the_first_case_of_the_next_run(begin: Callable[..., Path]) -> None:
    folder = begin(dataset_dir="scans")
    write_results(folder)
    finish_record(folder / RUN_RECORD)
    before = files_below(folder) - {"scores.unfinished.csv"}
    begin(overwrite=True, n_cases=0, dataset_dir="others")
    assert files_below(folder) == before
    assert json.loads((folder / RUN_RECORD).read_text())["options"]["dataset_dir"] == "scans"
    begin(overwrite=True, n_cases=2, dataset_dir="others")
    assert files_below(folder) == LOCK | {RUN_RECORD, "notes.txt"}
    assert json.loads((folder / RUN_RECORD).read_text())["options"]["dataset_dir"] == "others"


def test_what_bears_the_name_of_a_result_alone_is_not_taken_away(begin: Callable[..., Path]) -> None:
    folder = begin(dataset_dir="scans")
    write_results(folder)
    write_map(folder / "b_residual.nii.gz", marked=False)
    own = {"expert_overlay.png", "study_slices.csv", "c_log_likelihood.raw"}
    for name in own:
        (folder / name).write_text("mine")
    (folder / "d_overlay.png").mkdir()
    begin(overwrite=True, dataset_dir="scans")
    assert files_below(folder) == LOCK | own | {RUN_RECORD, "notes.txt", "b_residual.nii.gz"}


@pytest.mark.parametrize("name", ["a_anomaly_map.nii.gz", "a_slices.csv", "scores.csv", "metrics.json", "run.json"])
def test_what_a_run_would_write_over_and_did_not_write_is_named(
    begin: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name}, which no run of this package wrote"):
        begin(overwrite=True)
    assert (folder / name).read_text() == "mine"


def test_a_new_bundle_sweeps_what_a_killed_training_was_writing(tmp_path: Path) -> None:
    for name in ("configs/train.yaml", "logs/checkpoints/checkpoint_epoch=1.pt", "bundle"):
        path = unfinished_path(tmp_path / name)
        path = path.with_name(path.name.replace(path.name.split("-")[2], "999999999"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    begin_bundle(tmp_path)
    assert files_below(tmp_path) == LOCK
    release_folder(tmp_path)


def test_an_interrupted_training_is_not_begun_anew_without_a_word(tmp_path: Path) -> None:
    checkpoint = tmp_path / "logs/checkpoints/checkpoint_epoch=3.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (tmp_path / "logs/run.json").write_text('{"commands": [{"started": "2026-01-02T03:04:05+00:00"}]}')
    with pytest.raises(ValueError, match=rf"that began at 2026-01-02T03.*Go on with it with --resume {checkpoint},"):
        begin_bundle(tmp_path)
    begin_bundle(tmp_path, checkpoint)
    with pytest.raises(ValueError, match="holds an interrupted training"):  # which is another one's
        begin_bundle(tmp_path, tmp_path.parent / "logs/checkpoints/checkpoint_epoch=3.pt")
    checkpoint.unlink()  # killed before its first epoch ended
    begin_bundle(tmp_path)
    release_folder(tmp_path)


@pytest.mark.parametrize("name", ["LICENSE", "docs/README.md", "configs/train.yaml"])
def test_what_no_training_wrote_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name}, which no training wrote"):
        begin_bundle(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    release_folder(tmp_path)


def test_a_cache_is_swept(tmp_path: Path) -> None:
    path = unfinished_path(tmp_path / "cache/train/slices.float32")
    path = path.with_name(path.name.replace(path.name.split("-")[2], "999999999"))
    path.parent.mkdir(parents=True)
    path.touch()
    begin_cache(tmp_path / "cache")
    assert files_below(tmp_path / "cache") == LOCK
    release_folder(tmp_path / "cache")

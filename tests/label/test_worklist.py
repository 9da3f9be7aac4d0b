"""The worklist, batch inference, training and evaluation over HTTP, and what is left when one of them breaks off.

A server takes long to start, so the tests share one: each goes on where the one before left it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from outputs import BUNDLE, contents, files_below

from aeflow_monai import predict
from aeflow_monai.label.requests.server import make_app_folder

NORMALS = tuple(f"train_normal_00{number}" for number in range(4))


@pytest.fixture(scope="module")
def studies(make_studies: Callable[[], Path], volumes: Path) -> Path:
    """The studies, and normal volumes that a reader can mark."""
    folder = make_studies()
    for name in NORMALS:
        shutil.copy(volumes / f"images/{name}.nii.gz", folder)
    return folder


@pytest.fixture(scope="module")
def model(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that a test may change."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("model") / "RUN"))


@pytest.fixture(scope="module")
def server(studies: Path, model: Path, make_server: Callable[..., Any]) -> Iterator[Any]:
    server = make_server(studies, model=model)
    server.start()
    yield server
    server.close()


def write_label(image: str, mask: Any, like: Path, folder: Path, flip: float = 1) -> Path:
    """A label on the image's grid or, with a flip of -1, on its mirror image."""
    source = nib.load(like / f"{image}.nii.gz")
    file = folder / f"{image}.nii.gz"
    affine = source.affine @ np.diag([flip, 1, 1, 1])
    nib.save(nib.Nifti1Image(np.broadcast_to(np.uint8(mask), source.shape), affine), file)
    return file


def submit(server: Any, image: str, mask: Any, like: Path, folder: Path) -> None:
    """A reader submits a final label on the image's grid."""
    server.client.save_label(image, str(write_label(image, mask, like, folder)), tag="final")


def walk(server: Any, strategy: str, steps: int) -> list[str]:
    return [server.client.next_sample(strategy, {})["id"] for _ in range(steps)]


def models(server: Any) -> list[str]:
    """Folders of versions; none that is half written has such a name."""
    return sorted(folder.name for folder in (server.folder / "app/model").glob("v*"))


def test_scores_sort_the_worklist_and_a_broken_image_is_last(server: Any, model: Path) -> None:
    moved = model.rename(model.with_name("MOVED"))  # while the server runs: its own copy is used
    infos = server.wait_for_scores(1)
    moved.rename(model)
    assert models(server) == ["v1"]
    assert json.loads((server.folder / "app/model/v1/record.json").read_text())["imported_from"] == "RUN"
    assert "Expected an image" in infos["broken"]["anomaly_error"]
    scores = {name: info["anomaly_score"] for name, info in infos.items() if name != "broken"}
    threshold = next(info["anomaly_case_threshold"] for info in infos.values() if info.get("anomaly_case_threshold"))
    by_score = sorted(scores, key=lambda name: -scores[name])
    by_doubt = sorted(scores, key=lambda name: abs(scores[name] - threshold))
    assert by_score != by_doubt
    sample = server.client.next_sample("most_anomalous", {})
    assert (sample["id"], sample["sorted"], sample["unscored"]) == (by_score[0], True, 0)
    assert "notice" not in sample
    assert walk(server, "most_anomalous", len(infos) - 1) == [*by_score[1:], "broken"]
    assert walk(server, "nearest_threshold", len(infos)) == [*by_doubt, "broken"]
    # whoever goes on gets what was handed out longest ago, and no image with a final label
    assert walk(server, "most_anomalous", 1) == by_score[:1]
    said = server.refusal("next_sample", "oldest", {})
    assert "400" in said
    assert "'oldest'" in said
    assert walk(server, "random", len(infos)) == [*by_score, "broken"]  # OHIF asks for it whatever a reader chooses


def test_batch_inference_saves_masks_and_goes_on_after_a_broken_image(server: Any, studies: Path) -> None:
    server.get("/batch/infer/anomaly_mask", "POST", {})
    status = server.wait_for("/batch/infer")
    assert status["status"] == "DONE", status["details"]
    objects = server.client.datastore()["objects"]
    assert "original" not in objects["broken"]["labels"]
    for name, entry in objects.items():
        if name == "broken":
            continue
        info = entry["labels"]["original"]["info"]
        assert info["params"]["anomaly_score"] == pytest.approx(entry["image"]["info"]["anomaly_score"], abs=1e-6)
        assert (studies / "labels/original" / info["name"]).is_file()
    mask = nib.load(studies / "labels/original/test_abnormal_000.nii.gz")
    np.testing.assert_array_equal(mask.affine, nib.load(studies / "test_abnormal_000.nii.gz").affine)


def test_training_on_marked_normals_gives_the_next_model(
    server: Any, studies: Path, volumes: Path, tmp_path: Path
) -> None:
    before = server.client.infer("anomaly_mask", "test_abnormal_000", {})[1]
    assert before["model_version"] == 1
    for name in NORMALS:
        submit(server, name, 0, studies, tmp_path)
    lesion = nib.load(volumes / "masks/test_abnormal_000.nii.gz").get_fdata() > 0
    submit(server, "test_abnormal_000", lesion, studies, tmp_path)
    submit(server, "test_normal_000", 0, studies, tmp_path)
    mirrored = write_label("test_abnormal_001", 1, studies, tmp_path, flip=-1)
    said = server.refusal("save_label", "test_abnormal_001", str(mirrored), "final")
    assert "lies where its image does" in said
    assert server.client.info()["datastore"]["completed"] == 6

    options = {"max_epochs": 1, "val_split": 0.3, "train_batch_size": 8}
    status, content = server.ask("/train/anomaly", "POST", options)
    assert status == 409
    assert "was trained on 6 normal cases; 5 are marked normal" in content["detail"]
    assert server.ask("/train/?check_if_running=true")[0] == 404
    server.client.train_start("anomaly", {**options, "allow_fewer_normals": True})
    status = server.wait_for("/train/")
    assert status["status"] == "DONE", status["details"]

    stats = server.client.info()["train_stats"]["anomaly"]
    assert (stats["epoch"], stats["total_epochs"], stats["model_version"]) == (1, 1, 2)
    assert stats["total_time"]
    assert stats["train"]["metrics"]["train_loss"] == pytest.approx(stats["train"]["best_metric"])
    assert set(stats["eval"]["metrics"]) >= {"val_loss", "val_flow_loss", "val_reconstruction_loss"}
    assert models(server) == ["v1", "v2"]
    v2 = server.folder / "app/model/v2"
    record = json.loads((v2 / "record.json").read_text())
    assert record["trained_on"] == sorted([*NORMALS, "test_normal_000"])
    assert record["options"] == {"epochs": 1, "calibration_fraction": 0.3, "batch_size": 8}
    assert files_below(v2) == BUNDLE | {"record.json"}
    # the options of the version before hold on
    before_options, options = (
        yaml.safe_load((v2.parent / f"{v}/configs/train.yaml").read_text()) for v in ("v1", "v2")
    )
    assert options["image_size"] == before_options["image_size"] == [64, 64]
    assert options["network_def"] == before_options["network_def"]
    assert server.client.info()["trainers"]["anomaly"]["config"]["max_epochs"] == 1
    assert predict(studies / "test_abnormal_000.nii.gz", v2).thresholds == record["thresholds"]

    after = server.client.infer("anomaly_mask", "test_abnormal_000", {})[1]
    assert after["model_version"] == 2
    assert after["case_threshold"] != before["case_threshold"]
    # the new model scores the worklist by itself, and readers' labels become metrics
    infos = server.wait_for_scores(2, ask=False)
    assert infos["test_abnormal_000"]["anomaly_score"] == pytest.approx(after["anomaly_score"], abs=1e-6)
    report: dict[str, Any] = {}
    for _ in range(1000):
        report = server.client.info()["train_stats"]["anomaly"]["evaluation"]
        if report.get("model_version") == 2:
            break
        time.sleep(0.3)
    assert report["model_version"] == 2
    assert (report["n_images"], report["n_trained_on"]) == (1, 5)
    assert report["failed"] == {}
    assert report["metrics"]["n_lesion_voxels"] <= int(lesion.sum())
    assert 0 <= report["metrics"]["voxel_auroc"] <= 1
    assert server.client.info()["train_stats"]["anomaly"]["best_metric"] == report["metrics"]["dice"]
    # what a reader has labelled is not in the worklist any more
    assert "test_abnormal_000" not in walk(server, "most_anomalous", 5)


@pytest.mark.filterwarnings("ignore:The distutils package:DeprecationWarning")  # which MONAI Label imports
def test_an_image_that_is_removed_meanwhile_does_not_end_a_scoring(studies: Path) -> None:
    from monailabel.datastore.local import LocalDatastore

    from aeflow_monai.label.studies.records import store

    datastore = LocalDatastore(str(studies), extensions=("*.nii.gz",))
    store(datastore, "gone", {"anomaly_score": 1.0})
    assert "gone" not in datastore.list_images()


@pytest.mark.parametrize("who", ["server", "server at once", "training"])
def test_a_training_that_is_killed_leaves_the_model(server: Any, studies: Path, tmp_path: Path, who: str) -> None:
    before = server.client.infer("anomaly_mask", "test_abnormal_000", {})[1]
    there = models(server)
    for name in NORMALS:
        submit(server, name, 0, studies, tmp_path)
    model = server.folder / "app/model" / there[-1]
    content = contents(model)
    stats = server.folder / "app/model/train_stats.json"
    stats.unlink(missing_ok=True)
    server.client.train_start("anomaly", {"max_epochs": 200, "allow_fewer_normals": True})
    end = time.monotonic() + 300
    # statistics are written after the first epoch; at once, the training has not begun to load what it needs
    while server.get("/train/")["status"] != "RUNNING" if who == "server at once" else not stats.is_file():
        assert time.monotonic() < end, server.log.read_text()
        time.sleep(0.1)
    if who == "training":
        server.client.train_stop()
        assert server.wait_for("/train/")["status"] == "STOPPED"
    else:
        server.stop(signal.SIGKILL)
        # the training, which outlives its server, ends by itself and does not bring a model later
        group = server.process.pid
        end = time.monotonic() + 300
        while True:
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                break
            assert time.monotonic() < end, "the training goes on without its server"
            time.sleep(0.2)
        server.start()
    answer = server.client.infer("anomaly_mask", "test_abnormal_000", {})[1]
    assert answer["model_version"] == before["model_version"]
    assert answer["anomaly_score"] == pytest.approx(before["anomaly_score"], abs=1e-6)
    assert contents(model) == content
    assert models(server) == there


def test_a_server_without_a_model_says_what_to_do_and_trains_the_first(
    make_studies: Callable[[], Path], make_server: Callable[..., Any], preset: Path, tmp_path: Path
) -> None:
    studies = make_studies()
    server = make_server(studies, model=None)
    app = make_app_folder(server.folder / "app")
    monailabel = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    server.command = [*monailabel, "--conf", "presets", str(preset), *server.command[-4:]]
    server.start()
    try:
        info = server.client.info()
        assert info["models"] == {}
        stats = info["train_stats"]["anomaly"]
        # viewers show a training as running where there is no total time
        assert (stats["total_time"], stats["best_metric"], stats["model_version"]) == ("0:00:00", 0, None)
        assert server.ask("/scoring/anomaly_score", "POST", {})[0] == 400
        assert "There is no model yet" in server.refusal("infer", "anomaly_mask", "test_abnormal_000", {})
        assert "There is no model 'organs'" in server.refusal("train_start", "organs", {})

        # trainings that fail say why, and leave no model
        submit(server, "test_normal_000", 0, studies, tmp_path)
        server.client.train_start("anomaly", {"max_epochs": 1})
        status = server.wait_for("/train/")
        assert status["status"] == "ERROR"
        assert "found 1 among 6 images" in "\n".join(status["details"])
        submit(server, "test_normal_001", 0, studies, tmp_path)
        server.client.train_start("anomaly", {"learning_rate": 1000})
        status = server.wait_for("/train/")
        assert status["status"] == "ERROR"
        assert "diverged" in "\n".join(status["details"])
        assert models(server) == []
        assert server.client.info()["models"] == {}

        server.client.train_start("anomaly", {"max_epochs": 1})
        assert server.wait_for("/train/")["status"] == "DONE"
        assert set(server.client.info()["models"]) == {"anomaly_mask", "anomaly_map"}
        assert server.client.infer("anomaly_mask", "test_abnormal_000", {})[1]["model_version"] == 1

        # a label that is none is said in the report, and labels that a reader takes back are not in the next
        server.wait_for("/scoring/")
        (studies / "labels/final/test_abnormal_001.nii.gz").write_bytes(b"this is no label")
        report = server.evaluation()
        assert set(report["failed"]) == {"test_abnormal_001"}
        assert report["n_trained_on"] == 2
        for name in ("test_normal_000", "test_normal_001", "test_abnormal_001"):
            server.get(f"/datastore/label?id={name}&tag=final", "DELETE")
        report = server.evaluation()
        assert (report["failed"], report["n_trained_on"]) == ({}, 0)
    finally:
        server.close()

"""A server of the app over HTTP: what a viewer asks for, and what it is told if it asks wrongly."""

from __future__ import annotations

import csv
import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from aeflow_monai.result_files import PLACE_COLUMNS

VOLUMES = ("test_normal_000", "test_normal_001", "test_abnormal_000", "test_abnormal_001")


@pytest.fixture(scope="module")
def server(studies: Path, make_server: Callable[..., Any], audit: dict[str, str]) -> Iterator[Any]:
    server = make_server(studies, **audit)
    server.start()
    server.wait_for_scores(1)  # so that no other process disturbs
    yield server
    server.stop()


@pytest.fixture(scope="module")
def from_command_line(
    studies: Path, trained: Path, run_workflow: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Maps, masks and scores of the same images by the same model from the command line's workflow."""
    folder = tmp_path_factory.mktemp("maps")
    (folder / "images").mkdir()
    for name in VOLUMES:
        shutil.copy(studies / f"{name}.nii.gz", folder / "images")
    run_workflow(
        trained / "configs/inference.yaml",
        dataset_dir=str(folder / "images"),
        output_dir=str(folder / "out"),
        outputs=["anomaly_map", "anomaly_mask", "profile"],
    )
    return folder / "out"


def scores(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def test_info_tells_tasks_strategies_and_options(server: Any) -> None:
    info = server.client.info()
    assert set(info["models"]) == {"anomaly_mask", "anomaly_map"}
    assert info["models"]["anomaly_mask"]["config"]["threshold"] == "calibrated"
    assert info["models"]["anomaly_mask"]["version"] == "1"
    assert list(info["strategies"]) == ["most_anomalous", "nearest_threshold"]  # viewers offer the first
    assert set(info["scoring"]) == {"anomaly_score", "voxel_metrics"}
    assert info["trainers"]["anomaly"]["config"]["max_epochs"] == 3  # of the model's training
    assert info["labels"] == ["anomaly"]
    assert "Not a medical device" in info["description"]


@pytest.mark.parametrize("name", VOLUMES)
def test_a_volume_gets_what_the_command_line_gives(
    server: Any, studies: Path, from_command_line: Path, name: str
) -> None:
    source = nib.load(studies / f"{name}.nii.gz")
    row = scores(from_command_line)[name]
    for task in ("anomaly_mask", "anomaly_map"):
        path, said = server.client.infer(task, name, {})
        answer, expected = nib.load(path), nib.load(from_command_line / f"{name}_{task}.nii.gz")
        assert answer.shape == source.shape
        assert answer.get_data_dtype() == expected.get_data_dtype()
        np.testing.assert_array_equal(answer.get_sform(), source.get_sform())
        np.testing.assert_array_equal(answer.get_qform(), source.get_qform())
        if task == "anomaly_map":
            np.testing.assert_allclose(answer.get_fdata(), expected.get_fdata(), atol=1e-3)
        else:  # the number of threads moves the last digits of the map
            assert np.count_nonzero(answer.get_fdata() != expected.get_fdata()) <= 2
        assert said["anomaly_score"] == pytest.approx(float(row["anomaly_score"]), abs=1e-4)
        assert said["prediction"] == int(row["prediction"])
        most = said["most_anomalous_slice"]
        assert [str(most[column]) for column in PLACE_COLUMNS] == [row[column] for column in PLACE_COLUMNS]
        assert said["p_value"] == pytest.approx(float(row["p_value"]))
        assert said["n_held_out"] == int(row["n_held_out"])
        assert said["notice"] == "Research use only. Not a medical device."


@pytest.mark.parametrize("name", VOLUMES)
def test_the_most_anomalous_slice_is_where_the_reply_says(server: Any, from_command_line: Path, name: str) -> None:
    path, said = server.client.infer("anomaly_map", name, {})
    answer, most = nib.load(path), said["most_anomalous_slice"]
    with (from_command_line / f"{name}_slices.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    profile = said["profile"]["axial"]
    assert profile["positions_mm"] == pytest.approx([float(row["position_mm"]) for row in rows], abs=1e-3)
    assert profile["scores"] == pytest.approx([float(row["anomaly_score"]) for row in rows], abs=1e-4)
    assert most["position_mm"] == profile["positions_mm"][profile["slices_from_0"].index(most["slice_from_0"])]
    assert most["anomaly_score"] == max(profile["scores"])
    # the slice's centre, in the file's own array and in the world
    center = [(size - 1) / 2 for size in answer.shape]
    axis = "ijk".index(most["axis"])
    center[axis] = most["slice_from_0"]
    np.testing.assert_allclose(answer.affine[:3, :3] @ center + answer.affine[:3, 3], most["center_ras_mm"], atol=0.01)
    # the profile says which slice of the answer is whose: where the map is high the score is, apart from what
    # no map shows: the global term, and what is too easy to reconstruct
    bent = [min(term, 1.5) + math.log(1 + 4 * max(term - 1.5, 0)) / 4 for term in profile["global_terms"]]
    beside = zip(profile["scores"], bent, profile["ease"], strict=True)
    of_maps = [
        math.log(max(1e-6, 2 * math.exp(s) - math.exp(2 * term))) - 2 * max(0.0, ease - 1.5) for s, term, ease in beside
    ]
    planes = np.moveaxis(answer.get_fdata(), axis, 0).reshape(len(of_maps), -1)
    highest = np.sort(planes, axis=1)[:, -planes.shape[1] // 200 :].mean(axis=1)
    heights = highest / highest.std() + planes.mean(axis=1) / planes.mean(axis=1).std()
    in_order = [of_maps[profile["slices_from_0"].index(number)] for number in range(len(of_maps))]
    assert np.corrcoef(heights, in_order)[0, 1] > 0.9 > np.corrcoef(heights, in_order[::-1])[0, 1]


def test_the_threshold_is_an_option(server: Any) -> None:
    path, said = server.client.infer("anomaly_map", "test_abnormal_000", {})
    values = nib.load(path).get_fdata()
    for threshold in (0.5, "1.5"):
        path, said = server.client.infer("anomaly_mask", "test_abnormal_000", {"threshold": threshold})
        mask = nib.load(path)
        np.testing.assert_array_equal(mask.get_fdata(), values > float(threshold))
        assert said["map_threshold"] == float(threshold)
        assert said["anomalous_voxels"] == int((values > float(threshold)).sum())
        voxel_ml = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        assert said["anomalous_ml"] == pytest.approx(said["anomalous_voxels"] * voxel_ml, rel=1e-5)


def test_a_viewer_that_asks_for_8_bit_gets_a_scaled_map(server: Any) -> None:
    values = nib.load(server.client.infer("anomaly_map", "test_abnormal_000", {})[0]).get_fdata()
    path, said = server.client.infer("anomaly_map", "test_abnormal_000", {"result_dtype": "uint8"})
    grey, scale = nib.load(path), said["scale"]
    assert grey.get_data_dtype() == np.uint8
    expected = np.clip((values - scale["low"]) / (scale["high"] - scale["low"]) * 255, 0, 255)
    assert np.abs(grey.get_fdata() - expected).max() <= 0.51
    assert scale["low"] <= said["map_threshold"] <= scale["high"]


def test_slicers_request_is_answered_in_nrrd(server: Any, studies: Path) -> None:
    import itk

    wanted = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    path, _ = server.client.infer("anomaly_mask", "test_abnormal_000", {**wanted, "threshold": 0.5})
    answer, source = itk.imread(path), itk.imread(str(studies / "test_abnormal_000.nii.gz"))
    assert set(np.unique(itk.array_from_image(answer))) == {0, 1}
    assert itk.size(answer) == itk.size(source)
    np.testing.assert_allclose(np.array(answer.GetOrigin()), np.array(source.GetOrigin()), atol=1e-3)
    np.testing.assert_allclose(np.array(answer.GetSpacing()), np.array(source.GetSpacing()), atol=1e-4)
    np.testing.assert_allclose(
        itk.array_from_matrix(answer.GetDirection()), itk.array_from_matrix(source.GetDirection()), atol=1e-4
    )


def test_a_picture_gets_a_mask_and_a_map(server: Any, studies: Path) -> None:
    from PIL import Image

    with Image.open(studies / "picture.png") as picture:
        width, height = picture.size
    for task, dtype in (("anomaly_mask", np.uint8), ("anomaly_map", np.float32)):
        path, said = server.client.infer(task, "picture", {})
        answer = nib.load(path)
        assert answer.shape == (width, height, 1)
        assert answer.get_data_dtype() == dtype
        assert len(said["profile"]["axial"]["scores"]) == 1
        assert said["most_anomalous_slice"] is None


def test_an_uploaded_file_is_answered_too(server: Any, studies: Path) -> None:
    path, said = server.client.infer("anomaly_mask", "", {}, file=str(studies / "test_abnormal_000.nii.gz"))
    assert nib.load(path).shape == nib.load(studies / "test_abnormal_000.nii.gz").shape
    assert said["anomaly_score"] == server.client.infer("anomaly_mask", "test_abnormal_000", {})[1]["anomaly_score"]


@pytest.mark.parametrize(
    ("task", "image", "options", "status", "words"),
    [
        ("anomaly_mask", "broken", {}, 400, ("broken.nii.gz", "Expected an image")),
        ("anomaly_mask", "absent", {}, 400, ("'absent'",)),
        ("segmentation", "picture", {}, 404, ("'segmentation'", "anomaly_mask, anomaly_map")),
        ("anomaly_mask", "picture", {"threshold": "high"}, 400, ("'high'", "calibrated")),
        ("anomaly_mask", "picture", {"threshold": "inf"}, 400, ("'inf'", "calibrated")),
        ("anomaly_mask", "picture", {"device": "tpu"}, 400, ("'tpu'", "'cpu'")),
        ("anomaly_map", "picture", {"result_dtype": "uint7"}, 400, ("uint7", "float32")),
        ("anomaly_map", "picture", {"result_extension": ".exe"}, 400, (".exe", ".nii.gz")),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_wrong(
    server: Any, task: str, image: str, options: dict[str, Any], status: int, words: tuple[str, ...]
) -> None:
    said = server.refusal("infer", task, image, options)
    assert f"Status: {status}" in said
    for word in words:
        assert word in said
    assert server.client.infer("anomaly_mask", "picture", {})[1]["anomaly_score"]  # the server lives on


@pytest.mark.parametrize(
    ("path", "options", "status", "words"),
    [
        ("/train/anomaly", {"max_epochs": "many"}, 400, ("max_epochs", "'many'", "whole number")),
        ("/train/anomaly", {"learning_rate": 0}, 400, ("learning_rate", "above 0")),
        ("/train/anomaly", {"val_split": 1}, 400, ("val_split", "(0, 1)")),
        ("/train/anomaly", {"device": "tpu"}, 400, ("'tpu'", "'cpu'")),
        ("/train/", {"anomaly": {"seed": -1}}, 400, ("seed", "-1")),  # as OHIF asks
        ("/train/organs", {}, 404, ("'organs'", "anomaly")),
        ("/batch/infer/anomaly_mask", {"threshold": "high"}, 400, ("'high'", "calibrated")),
        ("/batch/infer/anomaly_mask", {"images": ["picture", "absent"]}, 400, ("'absent'",)),
        ("/batch/infer/anomaly_mask", {"max_batch_size": "all"}, 400, ("max_batch_size", "'all'")),
        ("/batch/infer/organs", {}, 404, ("'organs'", "anomaly_mask")),
        ("/scoring/anomaly_score", {"device": "tpu"}, 400, ("'tpu'",)),
        ("/scoring/dice", {}, 404, ("'dice'", "anomaly_score")),
    ],
)
def test_a_wrong_task_is_refused_before_it_starts(
    server: Any, path: str, options: dict[str, Any], status: int, words: tuple[str, ...]
) -> None:
    kind = path[: path.index("/", 1) + 1].replace("/batch/", "/batch/infer")
    before = server.ask(f"{kind}?all=true")
    answered, content = server.ask(path, "POST", options)
    assert answered == status, content
    for word in words:
        assert word in content["detail"]
    assert server.ask(f"{kind}?all=true") == before  # nothing waits or runs


def test_a_model_can_be_downloaded_and_not_uploaded(server: Any, trained: Path) -> None:
    import requests

    address = f"http://127.0.0.1:{server.port}/model/anomaly_mask"
    content = (trained / "models/model.pt").read_bytes()
    served = requests.get(address, timeout=60).content
    assert hashlib.sha256(served).digest() == hashlib.sha256(content).digest()
    answer = requests.put(address, files={"file": ("model.pt", content)}, timeout=60)
    assert answer.status_code == 400
    assert "does not know its preprocessing" in answer.json()["detail"]


def test_an_image_of_an_endless_name_is_refused(server: Any) -> None:
    said = server.refusal("infer", "anomaly_mask", "x" * 5000, {})
    assert "Status: 400" in said
    assert "There is no image" in said


def test_twenty_requests_at_once_are_answered_each_with_its_own(server: Any) -> None:
    images = [*VOLUMES, "picture"]
    before = server.peak_megabytes()
    alone = {}
    for image in images:
        path, said = server.client.infer("anomaly_map", image, {})
        alone[image] = (said["anomaly_score"], nib.load(path).get_fdata())

    def ask(image: str) -> tuple[str, float, Any]:
        path, said = server.client.infer("anomaly_map", image, {})
        return image, said["anomaly_score"], nib.load(path).get_fdata()

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(ask, images * 4))
    assert len(answers) == 20
    assert server.peak_megabytes() <= before * 1.1  # one case at a time
    for image, score, values in answers:
        assert score == pytest.approx(alone[image][0], abs=1e-6)
        np.testing.assert_allclose(values, alone[image][1], atol=1e-5)


def test_nothing_is_written_elsewhere_and_no_network_is_used(server: Any, studies: Path, audit: dict[str, str]) -> None:
    server.client.infer("anomaly_mask", "picture", {})
    lines = Path(audit["AUDIT_LOG"]).read_text().splitlines()
    places = {line.removeprefix("write ") for line in lines if line.startswith("write ")}
    allowed = (str(studies), str(server.folder / "app"), "/dev/")
    assert any(place.startswith(str(studies)) for place in places)
    # the imports of MONAI and torch make these where there are none, before anything of this package runs
    by_imports = ("/.config", "/.cache", "/.config/matplotlib", "/.cache/matplotlib", "/.cache/torchinductor")
    made = {audit["HOME"] + folder for folder in by_imports}
    others = {place for place in places if not place.startswith(allowed)}
    assert {place for place in others if place not in made and "/fontlist-" not in place} == set()
    assert [line for line in lines if line.startswith("network")] == []
    end = time.monotonic() + 5  # results are removed when they have been sent
    while list((server.folder / "app/tmp").glob("*.nii.gz")):
        assert time.monotonic() < end
        time.sleep(0.1)

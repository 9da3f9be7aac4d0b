"""The folder that a training wrote, as it is, in MONAI Label's own sample app `monaibundle`."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture(scope="module")
def server(
    trained: Path,
    studies: Path,
    make_server: Callable[..., Any],
    audit: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    app = tmp_path_factory.mktemp("sample") / "app"
    shutil.copytree(Path(sys.prefix, "monailabel/sample-apps/monaibundle"), app)
    shutil.copytree(trained, app / "model/aeflow")
    server = make_server(studies, **audit)
    offline = ["--conf", "zoo_source", "ngc", "--conf", "sam2", "false"]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    server.command = [*command, "--conf", "models", "aeflow", *offline, *server.command[-4:]]
    server.start()
    yield server
    server.close()


def test_it_is_listed_as_a_segmentation_of_one_label(server: Any) -> None:
    info = server.client.info()
    assert set(info["models"]) == {"aeflow"}
    assert info["models"]["aeflow"]["type"] == "segmentation"
    assert info["models"]["aeflow"]["labels"] == {"anomaly": 1}


def test_it_gives_the_mask_and_score_of_the_command_line(
    server: Any, trained: Path, studies: Path, run_workflow: Callable[..., Any], tmp_path: Path, audit: dict[str, str]
) -> None:
    name = "test_abnormal_000"
    source = nib.load(studies / f"{name}.nii.gz")
    run_workflow(
        trained / "configs/inference.yaml",
        dataset_dir=str(studies / f"{name}.nii.gz"),
        output_dir=str(tmp_path),
        outputs=["anomaly_mask"],
    )
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    path, said = server.client.infer("aeflow", name, {})
    answer = nib.load(path)
    assert answer.shape == source.shape
    np.testing.assert_allclose(answer.affine, source.affine, atol=1e-5)
    assert answer.get_data_dtype() == np.uint8
    expected = nib.load(tmp_path / f"{name}_anomaly_mask.nii.gz").get_fdata()
    assert np.count_nonzero(answer.get_fdata() != expected) <= 2  # the number of threads moves a map's last digits
    assert said["anomaly_score"] == pytest.approx(float(row["anomaly_score"]), abs=1e-4)
    assert said["most_anomalous_slice"]["axis"] == row["axis"]
    assert said["most_anomalous_slice"]["slice_from_0"] == int(row["slice_from_0"])
    lines = Path(audit["AUDIT_LOG"]).read_text().splitlines()
    assert [line for line in lines if line.startswith("network")] == []


@pytest.mark.parametrize("extension", ["", ".nii.gz", ".nrrd"])
def test_it_takes_a_picture_too(server: Any, studies: Path, extension: str) -> None:
    import itk

    wanted = {"result_extension": extension} if extension else {}
    path, said = server.client.infer("aeflow", "picture", wanted)
    answer, source = (
        itk.array_from_image(itk.imread(path)),
        itk.array_from_image(itk.imread(str(studies / "picture.png"))),
    )
    assert answer.size == source.size
    assert answer.shape[-2:] == source.shape
    assert set(np.unique(answer)) <= {0, 1}
    assert len(said["profile"]["axial"]["scores"]) == 1

"""Kinds of data, each from the training to its maps and metrics."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.data.utils import to_affine_nd
from outputs import MAPS, OUTPUTS, REPORTS, files_below, model_state, said, spatial, table

from aeflow_monai.data.phantom_files import write_phantom

Run = Callable[..., Any]
Options = dict[str, Any]

pytestmark = pytest.mark.end_to_end


def rows_of(rows: list[dict[str, str]], split: str, abnormal: str) -> list[dict[str, str]]:
    """Rows of a manifest."""
    return [row for row in rows if (row["split"], row["abnormal"]) == (split, abnormal)]


def test_three_planes_from_training_to_maps(
    tmp_path: Path, volumes: Path, run_workflow: Run, tiny_training: Options
) -> None:
    planes = {"axes": ["coronal", "axial", "sagittal"], "slicer#min_foreground": 0.05}
    # of the volumes three to train on and one of each kind to test on: there are many slices in three planes
    rows = table(volumes / "manifest.csv")
    sections = (("train", "0", 3), ("test", "0", 1), ("test", "1", 1))
    chosen = [row for split, abnormal, count in sections for row in rows_of(rows, split, abnormal)[:count]]
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in chosen:
            mask = row["mask"] and str(volumes / row["mask"])
            writer.writerow({**row, "path": str(volumes / row["path"]), "mask": mask})
    run, data = tmp_path / "run", {"dataset_dir": str(tmp_path)}
    training = {**tiny_training, **planes, "epochs": 1, "train#slices#step": 4}
    run_workflow("train.yaml", **data, output_dir=str(run), **training)
    run_workflow(run / "configs/evaluate.yaml", **data, output_dir=str(tmp_path / "results"), n_bootstrap=10)
    scores = {row["case"]: row["anomaly_score"] for row in table(tmp_path / "results/scores.csv")}
    assert len(scores) == 2

    image = volumes / "images/test_abnormal_000.nii.gz"
    options = {"outputs": ["profile"], "inferer#saliency": "plain"}
    run_workflow(run / "configs/inference.yaml", dataset_dir=str(image), output_dir=str(tmp_path / "maps"), **options)
    names = ("saliency.nii.gz", *OUTPUTS["profile"])
    assert files_below(tmp_path / "maps") == {"scores.csv", *(f"test_abnormal_000_{name}" for name in names)}
    (row,) = table(tmp_path / "maps/scores.csv")
    assert float(row["anomaly_score"]) == pytest.approx(float(scores["test_abnormal_000"]), rel=1e-5)
    voxels, affine = spatial(image)
    saliency, written_affine = spatial(tmp_path / "maps/test_abnormal_000_saliency.nii.gz")
    assert saliency.shape == voxels.shape
    np.testing.assert_allclose(written_affine, affine, atol=1e-5)
    assert np.isfinite(saliency).all()
    assert saliency.min() >= 0
    assert saliency.std() > 0
    # slices along the first plane are counted, as the file has them
    coronal = next(axis for axis, code in enumerate(nib.aff2axcodes(nib.load(image).affine)) if code in "AP")
    assert (row["plane"], row["axis"]) == ("coronal", "ijk"[coronal])
    assert 0 <= int(row["slice_from_0"]) < voxels.shape[coronal]
    profile = table(tmp_path / "maps/test_abnormal_000_slices.csv")
    assert [line["plane"] for line in profile if line["slice_from_0"] == "0"] == planes["axes"]
    assert len(profile) == sum(voxels.shape)
    scored = [line for line in profile if line["plane"] == "coronal" and line["anomaly_score"]]
    assert max(scored, key=lambda line: float(line["anomaly_score"]))["slice_from_0"] == row["slice_from_0"]
    # in the report, slices count along the first plane
    assert {line["plane"] for line in table(tmp_path / "results/slice_scores.csv")} == {"coronal"}


def test_png_slices_work_from_training_to_inference(
    tmp_path: Path, png_slices: Path, run_workflow: Run, tiny_training: Options
) -> None:
    run, results = tmp_path / "run", tmp_path / "results"
    run_workflow("train.yaml", dataset_dir=str(png_slices), output_dir=str(run), **{**tiny_training, "epochs": 1})
    run_workflow(run / "configs/evaluate.yaml", dataset_dir=str(png_slices), output_dir=str(results), n_bootstrap=10)
    metrics, localisation = (json.loads((results / f"{name}.json").read_text()) for name in ("metrics", "localisation"))
    assert (metrics["n_normal"], metrics["n_abnormal"]) == (5, 8)
    counts = [localisation[name] for name in ("n_volumes", "n_abnormal_volumes", "n_abnormal_slices")]
    assert counts == [13, 8, 8]
    assert len(table(results / "slice_scores.csv")) == 13

    image, scans = png_slices / "test/ABNORMAL/test_abnormal_000.png", tmp_path / "scans"
    scans.mkdir()
    for number in range(2):
        shutil.copy(image.with_name(f"test_abnormal_00{number}.png"), scans)
    where = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "maps")}
    run_workflow(run / "configs/inference.yaml", **where)
    voxels, affine = spatial(image)
    for name in (*MAPS, "anomaly_mask"):
        written = nib.load(tmp_path / f"maps/test_abnormal_000_{name}.nii.gz")
        assert written.shape == voxels.shape
        np.testing.assert_allclose(written.affine, to_affine_nd(3, affine), atol=1e-6)
    # a slice of its own has no profile
    names = [name for output, written in OUTPUTS.items() if output != "profile" for name in written]
    expected = {f"test_abnormal_00{number}_{name}" for number in range(2) for name in names}
    assert files_below(tmp_path / "maps") == {"scores.csv", *expected}
    assert len(table(tmp_path / "maps/scores.csv")) == 2


# --- data without normal cases ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tumours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases as BraTS has them: in a folder each, all abnormal, of two modalities."""
    root = tmp_path_factory.mktemp("tumours")
    phantom = write_phantom(root / "phantom", n_train=0, n_test_normal=0, n_test_abnormal=4)
    for number in range(4):
        folder = root / f"brats/BraTS_{number:03}"
        folder.mkdir(parents=True)
        image = nib.load(phantom / f"images/test_abnormal_{number:03}.nii.gz")
        nib.save(image, folder / f"{folder.name}_flair.nii.gz")
        other = np.asarray(image.dataobj, dtype=np.float32) ** 2
        nib.save(nib.Nifti1Image(other, image.affine), folder / f"{folder.name}_t1.nii.gz")
        shutil.copy(phantom / f"masks/test_abnormal_{number:03}.nii.gz", folder / f"{folder.name}_seg.nii.gz")
    return root / "brats"


@pytest.mark.parametrize("modalities", [["flair"], ["flair", "t1"]])
def test_a_set_of_abnormal_cases_is_evaluated_on_slices_and_voxels(
    tmp_path: Path,
    tumours: Path,
    run_workflow: Run,
    tiny_training: Options,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    modalities: list[str],
) -> None:
    run, results = tmp_path / "run", tmp_path / "results"
    fixed = {"layout": "brats", "modalities": modalities, "in_channels": len(modalities), "test_fraction": 0.5}
    training = {**tiny_training, "epochs": 1, "lesion_free_slices": True}
    run_workflow("train.yaml", dataset_dir=str(tumours), output_dir=str(run), **fixed, **training)
    assert model_state(run)["network.decoder.to_image.0.weight"].shape[1] == len(modalities)
    results.mkdir()
    (results / "metrics.json").write_text('{"auroc": 0.5}')  # of an earlier run
    # which part is tested on, and which files make a case, the bundle knows
    options = {"dataset_dir": str(tumours), "output_dir": str(results), "n_bootstrap": 10, "overwrite": True}
    run_workflow(run / "configs/evaluate.yaml", **options)
    assert "No metrics of cases: they need normal and abnormal cases, but all 2 that were read are abnormal." in (
        caplog.text
    )
    assert f"localisation: {results / 'localisation.json'}" in capsys.readouterr().out
    assert files_below(results) == REPORTS - {"metrics.json"}
    assert "### 2 cases, list " in (run / "docs/README.md").read_text()

    report = json.loads((results / "localisation.json").read_text())
    assert (report["n_volumes"], report["n_abnormal_volumes"], report["n_cases"]) == (2, 2, 2)
    tested = {row["case"] for row in table(results / "scores.csv")}
    masks = [np.asarray(nib.load(tumours / f"{case}/{case}_seg.nii.gz").dataobj) for case in sorted(tested)]
    assert report["n_lesion_voxels"] == sum(int((mask > 0).sum()) for mask in masks)
    size = sum(mask.size for mask in masks)
    assert 0.98 * size < report["n_voxels"] < size  # the darkest half percent counts as background
    assert 0 < report["n_abnormal_slices"] < report["n_slices"]
    assert 0 <= report["slice_auroc"] <= 1
    assert {row["case"] for row in table(results / "slice_scores.csv")} == tested

    where = {"dataset_dir": str(tumours), "output_dir": str(tmp_path / "maps")}
    run_workflow(run / "configs/inference.yaml", **where, layout="brats", outputs=[])
    scores = {row["case"]: float(row["anomaly_score"]) for row in table(tmp_path / "maps/scores.csv")}
    assert len(scores) == 4
    for row in table(results / "scores.csv"):
        assert scores[row["case"]] == pytest.approx(float(row["anomaly_score"]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 0.5}, "set lesion_free_slices to train on those of the 2 items with a mask"),
        (
            {"lesion_free_slices": True, "modalities": ["flair", "t1"]},
            "The network takes 1 channels; 'image' has 2",
        ),
        ({"lesion_free_slices": True, "modalities": ["t2"]}, "lacks the modality t2; asked for t2; found"),
    ],
)
def test_what_a_set_of_abnormal_cases_needs_is_said(
    tmp_path: Path, tumours: Path, run_workflow: Run, options: Options, message: str
) -> None:
    where = {"dataset_dir": str(tumours), "layout": "brats", "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as raised:
        run_workflow("train.yaml", **where, **options)
    assert message in said(raised)


# --- folders with more in them than images ----------------------------------------------------------------------------


def test_outputs_among_the_images_are_never_images(
    tmp_path: Path,
    volumes: Path,
    trained: Path,
    run_workflow: Run,
    tiny_training: Options,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    data = tmp_path / "data"
    data.mkdir()
    for name in "abc":
        shutil.copy(volumes / "images/train_normal_000.nii.gz", data / f"{name}.nii.gz")
    for extension, name in ((".nii.gz", "maps1"), (".mha", "maps2")):
        where = {"dataset_dir": str(data), "output_dir": str(data / name)}
        run_workflow(trained / "configs/inference.yaml", **where, output_ext=extension)
        assert [row["case"] for row in table(data / name / "scores.csv")] == ["a", "b", "c"]
    shutil.move(data / "maps1/a_reconstruction.nii.gz", data / "d.nii.gz")
    with pytest.raises(RuntimeError) as raised:
        run_workflow(trained / "configs/inference.yaml", dataset_dir=str(data / "d.nii.gz"), output_dir=str(tmp_path))
    assert f"{data / 'd.nii.gz'} is an output of this package" in said(raised)
    caplog.clear()
    run = tmp_path / "run"
    run_workflow("train.yaml", dataset_dir=str(data), output_dir=str(run), **{**tiny_training, "epochs": 1})
    assert "3 cases of the section 'train'" in caplog.text
    assert f"Not used in {data}: " in caplog.text
    assert "outputs of earlier runs (d.nii.gz, maps1/a_anomaly_map.nii.gz, " in caplog.text


def test_a_bad_name_or_a_missing_file_fails_its_case_alone(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run
) -> None:
    rows = table(volumes / "manifest.csv")
    normal, abnormal = (rows_of(rows, "test", label)[0] for label in "01")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.nii.gz", "red\x1b[31m.nii.gz", "line\nbreak.nii.gz"):
        shutil.copy(volumes / normal["path"], data / name)
    where = {"dataset_dir": str(data), "output_dir": str(tmp_path / "maps")}
    with pytest.raises(RuntimeError) as raised:
        run_workflow(trained / "configs/inference.yaml", **where, outputs=["anomaly_map"])
    assert "2 of 3 cases failed:" in said(raised)
    assert r"red\x1b[31m.nii.gz has control characters" in said(raised)
    assert "\x1b" not in said(raised)
    assert [row["case"] for row in table(tmp_path / "maps/scores.csv")] == ["a"]
    assert len(table(tmp_path / "maps/failures.csv")) == 2

    test = [
        {"image": str(volumes / normal["path"]), "label": 0, "case": "x" * 300},
        {"image": str(volumes / abnormal["path"]), "label": 1, "case": "b"},
        {"image": f"{'y' * 300}.nii.gz", "label": 0, "case": "long"},
        {"image": "a.nii.gz", "label": 1, "mask": "lost.nii.gz"},
    ]
    (data / "list.json").write_text(json.dumps({"test": test}))
    run = shutil.copytree(trained, tmp_path / "RUN")  # whose model card gets the table
    where = {"dataset_dir": str(data / "list.json"), "output_dir": str(tmp_path / "results")}
    with pytest.raises(RuntimeError) as raised:
        run_workflow(run / "configs/evaluate.yaml", **where, n_bootstrap=10)
    assert "2 of 4 cases failed:" in said(raised)
    assert "lost.nii.gz" in said(raised)
    assert {len(row["case"]) for row in table(tmp_path / "results/scores.csv")} == {1, 150}
    assert (tmp_path / "results/metrics.json").is_file()


# --- real data --------------------------------------------------------------------------------------------------------


def test_chest_xray_end_to_end(
    tmp_path: Path, run_workflow: Run, tiny_training: Options, real_data: Callable[[str], Path]
) -> None:
    source = real_data("chest_xray")
    rows = table(source / "manifest.csv")
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "abnormal"])
        for split, abnormal, count in (("train", "0", 24), ("train", "1", 4), ("test", "0", 6), ("test", "1", 6)):
            chosen = rows_of(rows, split, abnormal)[:count]
            writer.writerows([source / row["path"], split, abnormal] for row in chosen)
    run, results = tmp_path / "run", tmp_path / "results"
    own = {"slicer#min_foreground", "calibration_fraction", "learning_rate"}  # what the protocol itself decides
    options = {key: value for key, value in tiny_training.items() if key not in own}
    run_workflow(["train.yaml", "chest_xray.yaml"], dataset_dir=str(tmp_path), output_dir=str(run), **options)
    # the preset is part of the bundle
    run_workflow(run / "configs/evaluate.yaml", dataset_dir=str(tmp_path), output_dir=str(results), n_bootstrap=20)
    metrics = json.loads((results / "metrics.json").read_text())
    assert (metrics["n_normal"], metrics["n_abnormal"]) == (6, 6)
    assert 0 <= metrics["auroc"] <= 1

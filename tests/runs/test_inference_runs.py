import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from outputs import MAPS, OUTPUTS, assert_same_outputs, files_below, said, spatial, table
from PIL import Image

from aeflow_monai import Model, predict
from aeflow_monai.engine.bundles.bundle import write_bundle
from aeflow_monai.engine.config.stored_model import model_path, read_model
from aeflow_monai.engine.runs.earlier_results import find_results
from aeflow_monai.output.report.run_tables import read_run

Run = Callable[..., Any]

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def plain_folder(tmp_path: Path, volumes: Path) -> Path:
    """Three volumes of different axis order, in folders of their own and without any list."""
    by_axes = {nib.aff2axcodes(nib.load(file).affine): file for file in sorted((volumes / "images").glob("*.nii.gz"))}
    assert len(by_axes) >= 3
    for number, file in enumerate(list(by_axes.values())[:3]):
        (tmp_path / f"plain/{number}").mkdir(parents=True)
        shutil.copy(file, tmp_path / f"plain/{number}/scan_{number}.nii.gz")
    return tmp_path / "plain"


@pytest.fixture
def low_threshold(tmp_path: Path, trained: Path) -> Path:
    """The trained model with a map threshold that a part of every image exceeds."""
    stored, detector = read_model(model_path(trained)), Model(trained).detector
    detector.score.map_threshold.fill_(0.25)
    write_bundle(tmp_path / "low", detector, stored.config, stored.card)
    return tmp_path / "low"


def test_maps_of_a_plain_folder_lie_on_the_grids_of_their_volumes(
    tmp_path: Path, plain_folder: Path, low_threshold: Path, run_workflow: Run
) -> None:
    out = tmp_path / "out"
    run_workflow(low_threshold / "configs/inference.yaml", dataset_dir=str(plain_folder), output_dir=str(out))
    names = [name for written in OUTPUTS.values() for name in written]
    assert files_below(out) == {"scores.csv", *(f"scan_{number}_{name}" for number in range(3) for name in names)}
    for number in range(3):
        source = nib.load(plain_folder / f"{number}/scan_{number}.nii.gz")
        arrays = {}
        for name in (*MAPS, "anomaly_mask"):
            written = nib.load(out / f"scan_{number}_{name}.nii.gz")
            assert written.shape == source.shape
            np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
            assert written.get_data_dtype() == (np.uint8 if name == "anomaly_mask" else np.float32)
            arrays[name] = np.asarray(written.dataobj)
            assert np.isfinite(arrays[name]).all()
        np.testing.assert_array_equal(arrays["anomaly_mask"], arrays["anomaly_map"] > 0.25)
        assert 0 < arrays["anomaly_mask"].mean() < 1
        assert arrays["reconstruction"].min() >= 0
        assert arrays["reconstruction"].max() <= 1
        assert arrays["residual"].min() >= 0
        # the reconstruction of a head is bright where the head is, in the file's own axes
        head = np.asarray(source.dataobj) > np.percentile(source.dataobj, 60)
        assert arrays["reconstruction"][head].mean() > 1.2 * arrays["reconstruction"][~head].mean()
        with Image.open(out / f"scan_{number}_overlay.png") as picture:
            assert min(picture.size) > 100
    rows = table(out / "scores.csv")
    assert [row["case"] for row in rows] == ["scan_0", "scan_1", "scan_2"]
    assert "label" not in rows[0]
    assert {row["prediction"] for row in rows} <= {"0", "1"}


def test_a_bundle_that_was_moved_writes_the_same_files(
    tmp_path: Path, volumes: Path, trained: Path, inferred: Path, run_command: Run
) -> None:
    cwd, home = tmp_path / "cwd", tmp_path / "home"
    moved = shutil.copytree(trained, tmp_path / "another machine/model", ignore=shutil.ignore_patterns("logs"))
    cwd.mkdir()
    # relative, as people type it
    config = "../another machine/model/configs/inference.yaml"
    where = {"dataset_dir": volumes, "output_dir": "maps"}
    done = run_command("monai.bundle run", config, cwd=cwd, home=home, fresh=True, **where)
    assert done.returncode == 0, done.stderr
    assert files_below(cwd / "maps") == files_below(inferred)
    assert_same_outputs(cwd / "maps", inferred, files_below(inferred))
    assert f"maps and scores: {cwd / 'maps'}" in done.stdout
    assert files_below(cwd) == {f"maps/{name}" for name in files_below(inferred)}
    assert files_below(moved) == {name for name in files_below(trained) if not name.startswith("logs/")}
    assert {Path(name).parent.name for name in files_below(home)} <= {"forms"}  # for the next run


def test_of_a_data_set_with_a_list_the_test_images_are_scored(inferred: Path) -> None:
    names = [name for written in OUTPUTS.values() for name in written]
    cases = [f"test_{kind}_00{number}" for kind in ("abnormal", "normal") for number in range(3)]
    assert files_below(inferred) == {"scores.csv", *(f"{case}_{name}" for case in cases for name in names)}
    assert sorted(row["case"] for row in table(inferred / "scores.csv")) == cases
    # a later run knows all of them for its own
    assert {path.name for path in find_results(inferred)} == files_below(inferred) | {"report.html"}


@pytest.mark.parametrize("output", [*OUTPUTS, None])
def test_each_output_is_written_by_itself(
    tmp_path: Path, volumes: Path, trained: Path, inferred: Path, run_workflow: Run, output: str | None
) -> None:
    # one image file is a data set too
    image = volumes / "images/test_abnormal_000.nii.gz"
    where = {"dataset_dir": str(image), "output_dir": str(tmp_path)}
    run_workflow(trained / "configs/inference.yaml", **where, outputs=[output] if output else [])
    written = files_below(tmp_path)
    assert written == {"scores.csv", *(f"test_abnormal_000_{name}" for name in OUTPUTS.get(output, ()))}
    if output != "overlay":  # which also shows the lesion, and a file alone has none
        assert_same_outputs(tmp_path, inferred, written - {"scores.csv"})
    assert (tmp_path / "scores.csv").read_text().splitlines()[1] in (inferred / "scores.csv").read_text().splitlines()


@pytest.mark.parametrize("verb", ["inference", "evaluate", "calibrate"])
def test_a_run_without_its_beginning_still_refuses_other_options(
    tmp_path: Path, volumes: Path, trained: Path, start_workflow: Run, verb: str
) -> None:
    (tmp_path / "second.yaml").write_text("initialize: []\nslicer#fit: pad\n")
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "out")}
    workflow = start_workflow([trained / f"configs/{verb}.yaml", tmp_path / "second.yaml"], **where)
    with pytest.raises(RuntimeError) as raised:
        workflow.run()
    assert f"initialize of the bundle in {trained} cannot be replaced" in said(raised)


@pytest.mark.parametrize("outputs", [["overlays"], "overlay"])
def test_an_unknown_output_is_refused(
    tmp_path: Path, volumes: Path, trained: Path, start_workflow: Run, outputs: list[str] | str
) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as raised:
        start_workflow(trained / "configs/inference.yaml", **where, outputs=outputs)
    assert said(raised).startswith("outputs: expected a list of some of anomaly_map, ")
    assert said(raised).endswith(f'as "[anomaly_map,anomaly_mask]"; got {outputs!r}.')


@pytest.mark.parametrize("extension", [".nrrd", ".mha", ".nii"])
def test_other_formats_hold_the_same_numbers_on_the_same_grid(
    tmp_path: Path, volumes: Path, trained: Path, inferred: Path, run_workflow: Run, extension: str
) -> None:
    image = volumes / "images/test_abnormal_001.nii.gz"
    where = {"dataset_dir": str(image), "output_dir": str(tmp_path)}
    names = ("anomaly_map", "anomaly_mask")
    run_workflow(trained / "configs/inference.yaml", **where, output_ext=extension, outputs=list(names))
    _, affine = spatial(image)
    for name in names:
        reference, _ = spatial(inferred / f"test_abnormal_001_{name}.nii.gz")
        voxels, written_affine = spatial(tmp_path / f"test_abnormal_001_{name}{extension}")
        np.testing.assert_array_equal(voxels, reference)
        np.testing.assert_allclose(written_affine, affine, atol=1e-3)


def test_a_data_folder_without_images_is_refused(tmp_path: Path, trained: Path, run_workflow: Run) -> None:
    empty = tmp_path / "empty"
    (empty / "NORMAL").mkdir(parents=True)
    (empty / "NORMAL/notes.txt").touch()
    with pytest.raises(RuntimeError) as raised:
        run_workflow(trained / "configs/inference.yaml", dataset_dir=str(empty), output_dir=str(tmp_path / "maps"))
    assert said(raised).startswith("No image in")
    assert str(empty) in said(raised)
    assert "--dataset_dir" in said(raised)


# --- from Python ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["path", "array with its affine", "array"])
def test_predict_says_what_inference_writes(volumes: Path, trained: Path, inferred: Path, given: str) -> None:
    case = "test_abnormal_000"
    path = volumes / f"images/{case}.nii.gz"
    source = nib.load(path)
    voxels = np.asarray(source.dataobj)
    if given == "array":  # is taken to lie as a file without an affine would
        by_itself = predict(voxels, model=trained)
        as_file = predict(MetaTensor(torch.from_numpy(voxels.copy()), affine=torch.eye(4)), model=trained)
        assert by_itself.anomaly_score == as_file.anomaly_score
        assert torch.equal(by_itself.anomaly_map.as_tensor(), as_file.anomaly_map.as_tensor())
        torch.testing.assert_close(by_itself.anomaly_map.affine, torch.eye(4, dtype=torch.float64))
        return
    image = path if given == "path" else MetaTensor(torch.from_numpy(voxels.copy()), affine=source.affine)
    found = predict(image, model=trained)
    (row,) = [row for row in table(inferred / "scores.csv") if row["case"] == case]
    assert found.anomaly_score == float(row["anomaly_score"])
    assert found.is_abnormal == (row["prediction"] == "1")
    for name, value in {"anomaly_map": found.anomaly_map, "anomaly_mask": found.anomaly_mask, **found.maps}.items():
        written = nib.load(inferred / f"{case}_{name}.nii.gz")
        assert value.shape == (1, *source.shape)
        np.testing.assert_array_equal(value.numpy()[0], np.asarray(written.dataobj), err_msg=name)
        np.testing.assert_allclose(value.affine.numpy(), source.affine, atol=1e-5)
    profile = [float(line["anomaly_score"]) for line in table(inferred / f"{case}_slices.csv") if line["anomaly_score"]]
    looked_at = ~found.slice_scores["axial"].isnan()
    assert found.slice_scores["axial"][looked_at].tolist() == pytest.approx(profile, rel=1e-6)


def test_the_readmes_python_example_runs(
    tmp_path: Path, volumes: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = Path(__file__).parent.parent.parent / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "RUN").symlink_to(trained)
    shutil.copy(volumes / "images/test_normal_000.nii.gz", tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["prediction"].anomaly_map.shape[1:] == nib.load("scan.nii.gz").shape


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nv_10labels/flair.nii.gz", "BRATS_HG0015/BRATS_HG0015_FLAIR.mha"])
def test_maps_of_real_volumes_keep_their_geometry(
    tmp_path: Path, trained: Path, run_workflow: Run, real_data: Callable[[str], Path], name: str
) -> None:
    image = real_data("brain_mri") / name
    extension = ".mha" if image.suffix == ".mha" else ".nii.gz"
    where = {"dataset_dir": str(image), "output_dir": str(tmp_path)}
    names = ("anomaly_map", "anomaly_mask")
    options = {"output_ext": extension, "outputs": [*names, "overlay"]}
    run_workflow(trained / "configs/inference.yaml", **where, **options)
    voxels, affine = spatial(image)
    case = image.name.removesuffix(extension)
    for key in names:
        written, written_affine = spatial(tmp_path / f"{case}_{key}{extension}")
        assert written.shape == voxels.shape
        np.testing.assert_allclose(written_affine, affine, atol=1e-4)
    assert (tmp_path / f"{case}_overlay.png").is_file()


@pytest.mark.parametrize("is_volume", [True, False])
def test_images_of_another_kind_than_the_trainings_are_told(
    tmp_path: Path, volumes: Path, png_slices: Path, trained: Path, run_workflow: Run, is_volume: bool
) -> None:
    stored, detector = read_model(model_path(trained)), Model(trained).detector
    if is_volume:  # as a calibration on 2D images notes it
        detector.score.saw_volumes.fill_(0)
    write_bundle(tmp_path / "model", detector, stored.config, stored.card)
    image = sorted((volumes if is_volume else png_slices).rglob("*.nii.gz" if is_volume else "*.png"))[0]
    out = tmp_path / "out"
    where = {"dataset_dir": str(image), "output_dir": str(out), "outputs": []}
    run_workflow(tmp_path / "model/configs/inference.yaml", **where)
    (note,) = json.loads((out / "run.json").read_text("utf-8"))["notes"]
    trained_on, given = ("2D images", "A volume was") if is_volume else ("volumes", "A single slice was")
    assert note.startswith(given)
    assert f"the model was trained on {trained_on}" in note
    assert read_run(out)["run"]["notes"] == [note]
    assert note in (out / "report.html").read_text("utf-8")

"""Exported models of three planes: what their files and the example make of a volume is what torch makes of it."""

import json
import os
import runpy
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from made_once import MadeOnce
from without_torch import run_without_torch

from aeflow_monai import Model
from aeflow_monai.data import Slicer
from aeflow_monai.engine import SlicedInferer
from aeflow_monai.engine.bundles.model_export import FORMS, export_model
from conftest import RunWorkflow

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra fast")
pytest.importorskip("onnx", reason="needs the extra fast")

EXAMPLES = Path(__file__).parents[3] / "docs/examples"
EXAMPLE = EXAMPLES / "onnx_planes_without_torch.py"
PLANES = ["axial", "coronal", "sagittal"]


@pytest.fixture(scope="session")
def of_planes(made_once: MadeOnce, volumes: Path, run_workflow: RunWorkflow, tiny_training: dict[str, Any]) -> Path:
    """The bundle of a tiny training on three planes, which skips black slices."""
    options = {**tiny_training, "axes": PLANES, "slicer#min_foreground": 0.05, "calibration_fraction": 0.3}

    def train(folder: Path) -> None:
        run_workflow("train.yaml", dataset_dir=str(volumes), output_dir=str(folder), **options)

    return made_once("of_planes/RUN", train)


@pytest.fixture(scope="session")
def exported(made_once: MadeOnce, of_planes: Path) -> Path:
    return made_once("of_planes/EXPORTED", lambda folder: export_model(of_planes, "onnx", folder))


@pytest.fixture
def abnormal(volumes: Path, tmp_path: Path) -> Path:
    """A volume with a lesion, whose margins are black."""
    image = nibabel.load(sorted(volumes.glob("images/*abnormal*.nii.gz"))[-1])
    voxels = image.get_fdata()
    voxels[:3] = voxels[:, -5:] = voxels[..., :2] = 0
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), image.affine), tmp_path / "abnormal.nii.gz")
    return tmp_path / "abnormal.nii.gz"


def save_case(model: Model, image: Path, folder: Path) -> list[int]:
    """Write what the example reads of a volume, and return the volume's shape."""
    volume = model.preprocessing({"image": str(image), "case": "case"})["image"].as_subclass(torch.Tensor)
    slicer = model.inferer.slicer
    for plane in slicer.axes:
        numbers = slicer.chosen(volume, plane)
        np.save(folder / f"{plane}.npy", slicer.slices(volume, plane, numbers).numpy())
        np.save(folder / f"{plane}_numbers.npy", numbers.numpy())
    return [*volume.shape[1:]]


def assert_same_as_torch(
    model: Model, image: Path, exported: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = save_case(model, image, folder)
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), str(exported), str(folder), *map(str, shape)])
    found = runpy.run_path(str(EXAMPLE))
    expected = model.predict(image)
    assert found["case_score"] == pytest.approx(expected.anomaly_score, abs=1e-3)
    assert [*found["slice_scores"]] == PLANES
    for plane, scores in expected.slice_scores.items():
        of_all = np.full(len(scores), np.nan)
        of_all[found["found"][plane][0]] = found["slice_scores"][plane]
        np.testing.assert_allclose(of_all, scores.numpy(), atol=1e-3, rtol=0, err_msg=plane)
    preprocessed = model.preprocessing({"image": str(image), "case": "case"})["image"]
    mean_map = model.infer(preprocessed)["anomaly_map"][0]
    np.testing.assert_allclose(found["volume"], mean_map.numpy(), atol=1e-3, rtol=0)
    assert expected.slice_scores["axial"].nan_to_num(-np.inf).argmax() == found["most"]


def test_the_example_says_what_torch_says(
    of_planes: Path, exported: Path, abnormal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(of_planes)
    assert model.detector.score.of_mean_map
    assert model.detector.score.knows_global_terms
    assert_same_as_torch(model, abnormal, exported, tmp_path, monkeypatch)
    skipped = [int(scores.isnan().sum()) for scores in model.predict(abnormal).slice_scores.values()]
    assert all(skipped)


def test_the_example_pads_and_goes_without_a_global_term(
    of_planes: Path, abnormal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(of_planes)
    model.inferer = SlicedInferer(Slicer(PLANES, image_size=[160, 128], fit="pad", min_foreground=0.05))
    model.detector.score.has_global_term = False
    monkeypatch.setattr("aeflow_monai.engine.bundles.model_export.Model", lambda _: model)
    export_model(of_planes, "onnx", tmp_path / "EXPORTED")
    about = json.loads((tmp_path / "EXPORTED/model.json").read_text(encoding="utf-8"))
    assert "by cropping what was padded" in about["several_planes"]
    assert "The score of the case is M;" in about["several_planes"]
    assert_same_as_torch(model, abnormal, tmp_path / "EXPORTED", tmp_path, monkeypatch)


@pytest.mark.skipif("AEFLOW_DATA" not in os.environ, reason="AEFLOW_DATA names no folder of real data")
@pytest.mark.parametrize("name", ["brain_mri/nv_10labels/flair.nii.gz", "healthy_t1/sub-56_T1w.nii.gz"])
def test_the_example_says_what_torch_says_of_a_real_volume(
    of_planes: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert_same_as_torch(Model(of_planes), Path(os.environ["AEFLOW_DATA"], name), exported, tmp_path, monkeypatch)


def test_the_example_needs_neither_torch_nor_monai(
    of_planes: Path, exported: Path, abnormal: Path, tmp_path: Path
) -> None:
    model = Model(of_planes)
    shape = save_case(model, abnormal, tmp_path)
    ended = run_without_torch(EXAMPLE, exported, tmp_path, *shape)
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    score = model.predict(abnormal).anomaly_score
    assert float(first.removeprefix("case score ").partition(":")[0]) == pytest.approx(score, abs=1e-3)
    assert second.startswith("most anomalous slice: axial ")
    slices = np.load(tmp_path / "coronal.npy")
    is_wrong = np.arange(slices.shape[-1]) == 3
    for wrong in (slices[:0], np.where(is_wrong, np.nan, slices), np.where(is_wrong, 1.5, slices)):
        np.save(tmp_path / "coronal.npy", wrong)
        ended = run_without_torch(EXAMPLE, exported, tmp_path, *shape)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "Expected one or more coronal slices in [0, 1]" in ended.stderr


def test_the_file_beside_them_says_how_planes_are_combined(exported: Path, of_planes: Path) -> None:
    about = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    assert about["files"] == {plane: f"model_{plane}.onnx" for plane in PLANES}
    for file in about["files"].values():
        session = onnxruntime.InferenceSession(exported / file)
        for side, given in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert {each.name: each.shape for each in given} == {n: each["shape"] for n, each in about[side].items()}
    says, numbers = about["several_planes"], about["combination"]
    assert all(name in says for name in numbers.keys() - {"planes", "fit", "global_term"})
    score = Model(of_planes).detector.score
    assert f"The score of the case is {score.global_term.formula('M', 'G')};" in says
    assert numbers["fraction_mean"] == score.fraction_mean.tolist()
    assert about["thresholds"].items() >= score.thresholds.items()


@pytest.mark.parametrize("form", ["openvino", "torch"])
def test_files_of_all_forms_say_the_same(exported: Path, of_planes: Path, tmp_path: Path, form: str) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino") if form == "openvino" else None
    files = export_model(of_planes, form, tmp_path)
    assert [file.name for file in files] == [*(f"model_{plane}{FORMS[form]}" for plane in PLANES), "model.json"]
    image, position = torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 5)
    inputs = {"image": image.numpy(), "position": position.numpy()}
    expected = onnxruntime.InferenceSession(exported / "model_coronal.onnx").run(None, inputs)
    if openvino:
        given = openvino.Core().compile_model(files[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)
        found = [given[number] for number in range(len(expected))]
    else:
        found = [value.detach().numpy() for value in torch.export.load(files[1]).module()(image, position)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3, rtol=1e-4)


def test_planes_that_are_scored_each_by_itself_keep_their_scores(
    of_planes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(of_planes)
    model.detector.score.of_mean_map.fill_(False)
    monkeypatch.setattr("aeflow_monai.engine.bundles.model_export.Model", lambda _: model)
    about = json.loads(export_model(of_planes, "onnx", tmp_path)[-1].read_text(encoding="utf-8"))
    assert "case_map_score" in about["outputs"]
    assert "M is the mean of the files' case_map_score" in about["several_planes"]
    assert "combination" not in about


def test_a_single_file_is_refused(of_planes: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has 3 planes, axial, coronal, sagittal, with a file for each. Give a folder"
    ):
        export_model(of_planes, "onnx", tmp_path / "one.onnx")


def test_the_examples_refuse_each_other_s_models(exported: Path, trained: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "slices.npy", np.zeros((1, 1, 64, 64)))
    ended = run_without_torch(
        EXAMPLES / "onnx_without_torch.py", exported / "model_axial.onnx", tmp_path / "slices.npy"
    )
    assert ended.returncode == 1
    assert "This model has several planes: aeflow_monai's docs/examples/onnx_planes_without_torch.py" in ended.stderr
    export_model(trained, "onnx", tmp_path / "of_one")
    ended = run_without_torch(EXAMPLE, tmp_path / "of_one", tmp_path, 4, 4, 4)
    assert ended.returncode == 1
    assert "Expected a model of several planes; for one use onnx_without_torch.py." in ended.stderr

"""Exported models for other programs, on the volumes that the tiny training saw and did not see."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import ForkServer
from without_torch import run_without_torch

from aeflow_monai import Model
from aeflow_monai.cli.main import main
from aeflow_monai.engine.bundles.model_export import FORMS, export_model
from aeflow_monai.engine.inference.whole_model import OUTPUTS_OF_WHOLE
from conftest import RunWorkflow

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra fast")
pytest.importorskip("onnx", reason="needs the extra fast")

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs/examples/onnx_without_torch.py"


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert main(["export", str(trained), "--to", "onnx", "-o", str(folder), "--quiet"]) == 0
    return folder


Seen = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def slices(trained: Path, volumes: Path) -> Seen:
    return seen(trained, sorted(volumes.glob("**/*.nii.gz"))[-1])


def seen(trained: Path, path: Path) -> Seen:
    """The processed slices of a volume, their positions, and what torch says of them."""
    model = Model(trained)
    image = model.preprocessing({"image": str(path), "case": "case"})["image"]
    slicer = model.inferer.slicer
    chosen = slicer.chosen(image.as_subclass(torch.Tensor), "axial")
    places = slicer.places(chosen, "axial")
    stack = slicer.slices(image.as_subclass(torch.Tensor), "axial", chosen)
    with torch.no_grad():
        scores = model.detector.finish(model.detector.infer(stack, places)[0])
    case = model.detector.score.case_score({"axial": scores.map_scores}, {"axial": scores.global_terms})
    return stack, places.positions.float(), {**scores._asdict(), "case_score": case[None]}


def assert_equal_to_torch(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-3, rtol=1e-4, err_msg=name)


def test_onnx_says_what_torch_says(exported: Path, slices: Seen) -> None:
    stack, positions, expected = slices
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    inputs = {"image": stack.numpy(), "position": positions.numpy()}
    found = dict(zip(OUTPUTS_OF_WHOLE, session.run(None, inputs), strict=True))
    assert_equal_to_torch(found, expected)


@pytest.mark.skipif("AEFLOW_DATA" not in os.environ, reason="AEFLOW_DATA names no folder of real data")
def test_onnx_says_what_torch_says_of_a_real_volume(exported: Path, trained: Path) -> None:
    stack, positions, expected = seen(trained, Path(os.environ["AEFLOW_DATA"], "brain_mri/nv_10labels/flair.nii.gz"))
    assert len(stack) > 10
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    found = session.run(None, {"image": stack.numpy(), "position": positions.numpy()})
    assert_equal_to_torch(dict(zip(OUTPUTS_OF_WHOLE, found, strict=True)), expected)


def test_the_file_beside_it_says_how_it_is_used(exported: Path, trained: Path) -> None:
    about = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    for side, given in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert {each.name: each.shape for each in given} == {n: each["shape"] for n, each in about[side].items()}
    assert about["thresholds"].items() >= Model(trained).detector.score.thresholds.items()
    assert "preprocessing" in about["preprocessing"]["config"]
    assert "robust percentiles of the foreground" in about["preprocessing"]["steps"]["ScaleForegroundd"]
    assert "Not a medical device" in about["disclaimer"]


def test_the_example_needs_neither_torch_nor_monai(exported: Path, slices: Seen, tmp_path: Path) -> None:
    stack, _, expected = slices
    np.save(tmp_path / "slices.npy", stack.numpy())
    given = (EXAMPLE, exported / "model.onnx", tmp_path / "slices.npy")
    ended = run_without_torch(*given)
    assert ended.returncode == 0, ended.stderr
    said = float(ended.stdout.removeprefix("case score ").partition(":")[0])
    assert said == pytest.approx(float(expected["case_score"]), rel=1e-4, abs=1e-3)
    for wrong in (np.nan, 1.5):
        np.save(tmp_path / "slices.npy", np.where(np.arange(stack.shape[-1]) == 3, wrong, stack.numpy()))
        ended = run_without_torch(*given)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "Expected slices in [0, 1]" in ended.stderr
    np.save(tmp_path / "slices.npy", np.full_like(stack.numpy(), 1 + 2e-7))  # as rounded by a resize
    assert run_without_torch(*given).returncode == 0


def test_openvino_says_what_torch_says(trained: Path, slices: Seen, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    stack, positions, expected = slices
    files = export_model(trained, "openvino", tmp_path / "of.site.xml")
    assert [file.name for file in files] == ["of.site.xml", "of.site.json"]
    assert (tmp_path / "of.site.bin").is_file()
    compiled = openvino.Core().compile_model(files[0], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = compiled({"image": stack.numpy(), "position": positions.numpy()})
    found = {name: given[compiled.output(name)] for name in OUTPUTS_OF_WHOLE}
    assert_equal_to_torch(found, expected)


def test_a_program_of_torch_says_the_same(trained: Path, slices: Seen, tmp_path: Path) -> None:
    stack, positions, expected = slices
    path, about = export_model(trained, "torch", tmp_path / "site.v1.pt2")
    assert (path.name, about.name) == ("site.v1.pt2", "site.v1.json")
    program = torch.export.load(path).module()
    found = dict(zip(OUTPUTS_OF_WHOLE, program(stack, positions), strict=True))
    assert_equal_to_torch({name: value.numpy() for name, value in found.items()}, expected)


# aeflow with a limit on the size of files, which the system treats as it treats a full disk
LIMITED = """
import resource, sys
from aeflow_monai.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("form", ["onnx", "openvino", "torch"])
def test_a_full_disk_is_told_and_leaves_no_half_of_a_model(
    trained: Path, tmp_path: Path, fork_server: ForkServer, form: str
) -> None:
    pytest.importorskip("openvino" if form == "openvino" else "onnx")
    folder, suffix = tmp_path / "EXPORTED", FORMS[form]
    before = {f"model{suffix}": "of an earlier export", "model.json": "{}", "model.bin": "of an earlier export"}
    folder.mkdir()
    for name, content in before.items():
        (folder / name).write_text(content, encoding="utf-8")
    command = ["export", str(trained), "--to", form, "-o", str(folder), "--overwrite"]
    done = fork_server.run(["-c", LIMITED, *command], tmp_path, os.environ)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    if form == "openvino":
        said = (
            rf"error: OpenVINO could not write {folder}/model\.xml: .+ Is the disk full, or the size of files limited\?"
        )
    else:
        said = rf"error: File too large: {folder}/model\{suffix}\. Free space there, or give another folder.*"
    assert re.fullmatch(said, last)
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == before


def test_a_folder_in_the_way_leaves_no_half_of_a_model(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"model\.json"):
        export_model(trained, "onnx", tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_files_that_are_there_are_replaced_only_if_wanted_and_leave_no_part_behind(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.json").write_text('{"mine": 1}')
    command = ["export", str(trained), "-o", str(tmp_path), "--to"]
    assert main([*command, "torch"]) == 2
    assert "holds model.json, which would be lost. Give another folder" in capsys.readouterr().err
    assert (tmp_path / "model.json").read_text() == '{"mine": 1}'
    assert main([*command, "torch", "--overwrite"]) == 0
    pytest.importorskip("openvino", reason="needs the extra openvino")
    assert main([*command, "openvino"]) == 2
    assert "holds model.json, model.pt2, which would be lost" in capsys.readouterr().err
    assert main([*command, "openvino", "--overwrite"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.xml", "model.bin"}
    assert main([*command, "torch", "--overwrite"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.pt2"}


def kind_of(trained: Path, folder: Path) -> str:
    about = json.loads(export_model(trained, "torch", folder)[-1].read_text(encoding="utf-8"))
    assert ("position" in about["inputs"]) == ("volume" in about["kind"])
    return str(about["kind"])


@pytest.mark.parametrize("options", [{"network_def#score#published": True}, {}])
def test_a_model_of_few_volumes_or_the_published_score_is_one_of_volumes(
    tmp_path: Path, volumes: Path, run_workflow: RunWorkflow, tiny_training: dict[str, Any], options: dict[str, Any]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(volumes.glob("**/train_*.nii.gz"))[:2]:
        shutil.copy(path, few)
    run_workflow("train.yaml", dataset_dir=str(few), output_dir=str(tmp_path / "RUN"), **{**tiny_training, **options})
    norm = Model(tmp_path / "RUN").detector.score.dissimilarity_norm
    assert bool((norm.std == 1).all()) if options else not norm.is_known
    assert kind_of(tmp_path / "RUN", tmp_path / "EXPORTED") == "slices of a plane of one volume"


def test_a_model_that_pads_says_what_it_does_not_take(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model(trained)
    monkeypatch.setattr("aeflow_monai.engine.bundles.model_export.Model", lambda _: model)
    monkeypatch.setattr(model.inferer.slicer, "fit", "pad")
    export_model(trained, "torch", tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    assert "padded with 0" in about["preprocessing"]["says"]
    assert "does not take larger slices" in about["preprocessing"]["says"]
    height, width = model.inferer.slicer.image_size
    assert f"What is exported takes those of up to {height} x {width} pixels." in caplog.text


def test_what_a_model_of_an_earlier_version_does_not_tell_is_not_guessed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(trained)
    monkeypatch.setattr("aeflow_monai.engine.bundles.model_export.Model", lambda _: model)
    model.detector.score.saw_volumes.fill_(-1)
    assert "volume" in kind_of(trained, tmp_path / "EXPORTED")  # as its normals tell
    model.detector.score.dissimilarity_norm.reset()
    with pytest.raises(ValueError, match=r"does not tell whether it is of volumes or of 2D images.* aeflow calibrate"):
        export_model(trained, "torch", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_wrong_use_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="Expected one of onnx, openvino, torch to export to; got 'tflite'"):
        export_model(trained, "tflite", tmp_path)
    assert main(["export", str(tmp_path), "--to", "onnx", "-o", str(tmp_path)]) == 2
    assert "Expected the folder of a training" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.onnx", "file.txt", "file.txt/below"])
def test_a_path_that_is_no_folder_is_refused(trained: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("something else")
    with pytest.raises(ValueError, match=r"Expected a folder"):
        export_model(trained, "torch", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from monai.bundle import verify_net_in_out
from outputs import BUNDLE, contents, differing, files_below, model_state, said, table

from aeflow_monai.engine.config.stored_model import model_path, read_model

Run = Callable[..., Any]

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, volumes: Path) -> Path:
    """Three normal volumes of a scanner with another contrast."""
    folder = tmp_path_factory.mktemp("site")
    for file in sorted((volumes / "images").glob("test_normal_*.nii.gz")):
        source = nib.load(file)
        voxels = source.get_fdata() ** 0.5
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), source.affine), folder / file.name)
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, site: Path, trained: Path, run_workflow: Run) -> Path:
    """The bundle that a calibration on these writes: read only."""
    folder = tmp_path_factory.mktemp("calibrated") / "SITE"
    run_workflow(trained / "configs/calibrate.yaml", dataset_dir=str(site), output_dir=str(folder))
    return folder


def test_a_calibration_changes_the_score_and_not_the_network(trained: Path, calibrated: Path) -> None:
    changed = set(differing(model_state(trained), model_state(calibrated)))
    assert {f"score.{name}" for name in ("term_mean", "map_std", "position_norm.mean", "case_threshold")} <= changed
    assert {name.partition(".")[0] for name in changed} == {"score"}


def test_a_calibration_writes_a_complete_bundle(
    tmp_path: Path, site: Path, trained: Path, calibrated: Path, run_workflow: Run
) -> None:
    assert files_below(calibrated) == BUNDLE | {"logs/run.json"}
    record = json.loads((calibrated / "logs/run.json").read_text())
    assert (record["state"], len(record["calibrated_on"])) == ("finished", 3)
    verify_net_in_out(
        "network_def",
        meta_file=str(calibrated / "configs/metadata.json"),
        config_file=str(calibrated / "configs/inference.yaml"),
        device="cpu",
        n=4,
    )
    for name in ("train", "inference", "evaluate", "calibrate"):  # perhaps in another order
        old, new = (yaml.safe_load((run / f"configs/{name}.yaml").read_text()) for run in (trained, calibrated))
        assert new == old, name
    stored = read_model(model_path(calibrated))
    assert stored.config == read_model(model_path(trained)).config
    assert stored.card["data"]["calibrated on: cases"] == 3
    assert stored.card["data"]["trained on: cases"] == 5
    card = (calibrated / "docs/README.md").read_text()
    assert "| calibrated on: patients | 3 |" in card
    assert "set on 3 held-out patients" in card
    assert str(site) not in card
    # as cases of that site are scored from now on, none of its normals is above the threshold
    where = {"dataset_dir": str(site), "output_dir": str(tmp_path / "maps")}
    run_workflow(calibrated / "configs/inference.yaml", **where, outputs=[])
    assert [row["prediction"] for row in table(tmp_path / "maps/scores.csv")] == ["0"] * 3


def test_a_bundle_that_was_moved_calibrates_the_same(
    tmp_path: Path,
    site: Path,
    trained: Path,
    calibrated: Path,
    run_workflow: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    moved = shutil.copytree(trained, tmp_path / "moved", ignore=shutil.ignore_patterns("logs"))
    before = contents(moved)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    run_workflow(moved / "configs/calibrate.yaml", dataset_dir=str(site), output_dir="site")
    new = tmp_path / "cwd/site"
    assert f"bundle: {new}\n" in capsys.readouterr().out
    assert "normals of 3 patients are too few for a specificity of 95%" in caplog.text
    assert not differing(model_state(new), model_state(calibrated))
    expected, written = contents(calibrated), contents(new)
    assert {name for name in expected if written[name] != expected[name]} <= {
        "models/model.pt",
        "configs/metadata.json",  # with its hash
        "logs/run.json",  # with its times
    }
    assert contents(moved) == before
    # a calibrated bundle is calibrated as a trained one
    run_workflow(new / "configs/calibrate.yaml", dataset_dir=str(site), output_dir=str(tmp_path / "again"))
    assert not differing(model_state(tmp_path / "again"), model_state(calibrated))


def test_a_new_bundle_needs_a_folder(site: Path, trained: Path, start_workflow: Run) -> None:
    with pytest.raises(RuntimeError) as raised:
        start_workflow(trained / "configs/calibrate.yaml", dataset_dir=str(site))
    assert "Name a folder for the calibrated model with --output_dir" in said(raised)


def test_a_new_bundle_says_its_specificity(tmp_path: Path, site: Path, trained: Path, run_workflow: Run) -> None:
    options = {"dataset_dir": str(site), "output_dir": str(tmp_path / "new"), "specificity": 0.5}
    run_workflow(trained / "configs/calibrate.yaml", **options)
    for name in ("train", "calibrate"):
        assert yaml.safe_load((tmp_path / f"new/configs/{name}.yaml").read_text())["specificity"] == 0.5


def test_duplicates_of_one_image_are_told_and_set_no_threshold_alone(
    tmp_path: Path,
    site: Path,
    trained: Path,
    run_workflow: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    duplicates = tmp_path / "duplicates"
    duplicates.mkdir()
    first, second, _ = sorted(site.iterdir())
    for name in ("a", "b", "c"):
        shutil.copy(first, duplicates / f"{name}.nii.gz")
    config = trained / "configs/calibrate.yaml"
    with pytest.raises(RuntimeError) as raised:
        run_workflow(config, dataset_dir=str(duplicates), output_dir=str(tmp_path / "one"))
    assert "got 3 duplicates of one image: a, b, c. Give other images too." in said(raised)
    assert not (tmp_path / "one").exists()
    shutil.copy(second, duplicates / "d.nii.gz")
    run_workflow(config, dataset_dir=str(duplicates), output_dir=str(tmp_path / "two"))
    assert "2 of 4 normals that thresholds are set on are duplicates of others: b, c. Each counts as a" in caplog.text
    caplog.clear()
    listed = {"training": [{"image": f"{name}.nii.gz", "patient": "p" if name < "d" else "q"} for name in "abcd"]}
    (duplicates / "dataset.json").write_text(json.dumps(listed), encoding="utf-8")
    run_workflow(config, dataset_dir=str(duplicates / "dataset.json"), output_dir=str(tmp_path / "listed"))
    assert "are duplicates" not in caplog.text
    assert re.search(
        r"At the threshold of (-?\d\.\d\d) or above it: [abcd] \1.*; the median of all 4 normals is", caplog.text
    )
    assert "normals of 2 patients are too few for a specificity of 95%" in caplog.text


def test_normals_that_were_trained_on_are_refused(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run
) -> None:
    with pytest.raises(RuntimeError) as raised:
        run_workflow(trained / "configs/calibrate.yaml", dataset_dir=str(volumes), output_dir=str(tmp_path / "site"))
    assert "5 of 6 images were trained on: thresholds of images that the model knows are too low" in said(raised)
    assert not (tmp_path / "site").exists()


def test_normals_that_were_trained_on_are_reported_however_they_are_saved(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, caplog: pytest.LogCaptureFixture
) -> None:
    anew = tmp_path / "anew"
    anew.mkdir()
    for file in sorted((volumes / "images").glob("train_*.nii.gz")):
        source = nib.load(file)
        nib.save(nib.Nifti1Image(source.get_fdata(), source.affine), anew / file.name)
    run_workflow(trained / "configs/calibrate.yaml", dataset_dir=str(anew), output_dir=str(tmp_path / "SITE"))
    assert "6 of 6 normals have the features of images that the model was trained or calibrated on" in caplog.text


def test_volumes_that_calibrate_a_model_of_pictures_are_told(
    tmp_path: Path,
    site: Path,
    png_slices: Path,
    run_workflow: Run,
    tiny_training: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tmp_path / "RUN"
    run_workflow("train.yaml", dataset_dir=str(png_slices), output_dir=str(model), **tiny_training)
    told = "Volumes are among the normals, but the model was trained on 2D images: each slice was taken as one of them."
    assert told not in caplog.text
    run_workflow(model / "configs/calibrate.yaml", dataset_dir=str(site), output_dir=str(tmp_path / "SITE"))
    assert told in caplog.text

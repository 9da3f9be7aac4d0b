import csv
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from forked import ForkServer
from outputs import REPORTS, contents, files_below, model_state, said, table
from scipy import ndimage

from aeflow_monai.data.transforms import ScaleForegroundd
from aeflow_monai.engine.runs.earlier_results import find_results
from aeflow_monai.metrics import LesionMetrics, VoxelMetrics

Run = Callable[..., Any]

pytestmark = pytest.mark.end_to_end


def test_an_evaluation_writes_its_reports_and_scores(trained: Path, evaluated: Any) -> None:
    assert files_below(evaluated.results) == REPORTS
    assert {path.name for path in find_results(evaluated.results)} == REPORTS | {"report.html"}
    metrics = json.loads((evaluated.results / "metrics.json").read_text())
    assert metrics["threshold"] == pytest.approx(float(model_state(trained)["score.case_threshold"]))
    named = {"auroc", "average_precision", "f1", "accuracy", "sensitivity", "specificity"}
    assert {*named, *(f"{name}_ci95" for name in named), "oracle_best_f1", "all_abnormal_f1"} <= metrics.keys()
    assert {"n_normal", "n_abnormal", "n_bootstrap", "bootstrap_seed"} <= metrics.keys()
    assert metrics["baselines"].keys() == {"intensity_mean", "intensity_std", "intensity_p95"}

    rows = table(evaluated.results / "scores.csv")
    assert {"case", "file", "label", "anomaly_score", "prediction"} <= rows[0].keys()
    assert sorted((row["case"], row["label"]) for row in rows) == [
        *((f"test_abnormal_00{i}", "1") for i in range(3)),
        *((f"test_normal_00{i}", "0") for i in range(3)),
    ]
    for row in rows:
        assert int(row["prediction"]) == (float(row["anomaly_score"]) > metrics["threshold"])
        assert float(row["threshold"]) == metrics["threshold"]
        assert 1 / (1 + int(row["n_held_out"])) <= float(row["p_value"]) <= 1
        assert Path(row["file"]).is_file()


def test_an_evaluation_scores_as_inference_does(evaluated: Any, inferred: Path) -> None:
    rows = [
        {
            row["case"]: {name: value for name, value in row.items() if name not in ("file", "label")}
            for row in table(folder / "scores.csv")
        }
        for folder in (evaluated.results, inferred)
    ]
    assert rows[0] == rows[1]


def test_an_evaluation_adds_its_table_to_the_model_card(trained: Path, evaluated: Any) -> None:
    card = (evaluated.run / "docs/README.md").read_text()
    assert card.startswith((trained / "docs/README.md").read_text().rstrip("\n"))
    metrics, localisation = (
        json.loads((evaluated.results / f"{name}.json").read_text()) for name in ("metrics", "localisation")
    )
    table_of_it = card.rpartition("### 6 cases, list ")[2]
    low, high = metrics["auroc_ci95"]
    assert f"| auroc | {metrics['auroc']:.3f} [{low:.3f}, {high:.3f}] |" in table_of_it
    assert "| n normal | 3 |" in table_of_it
    assert f"| slice auroc | {localisation['slice_auroc']:.3f}" in table_of_it
    assert f"| expected specificity | {metrics['expected_specificity']:.3f} |" in table_of_it
    assert f"| voxel auroc | {localisation['voxel_auroc']:.3f}" in table_of_it
    assert str(evaluated.results.parent) not in card
    # nothing else of the bundle changes
    before, after = contents(trained), contents(evaluated.run)
    assert [name for name in before if before[name] != after[name]] == ["docs/README.md"]
    assert before.keys() == after.keys()


def test_a_bundle_that_was_moved_evaluates_the_same(
    tmp_path: Path,
    volumes: Path,
    trained: Path,
    evaluated: Any,
    run_workflow: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    moved = shutil.copytree(trained, tmp_path / "moved", ignore=shutil.ignore_patterns("logs"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    where = {"dataset_dir": str(volumes), "output_dir": "results"}
    run_workflow(moved / "configs/evaluate.yaml", **where, n_bootstrap=50)
    assert contents(tmp_path / "cwd/results") == contents(evaluated.results)
    printed = capsys.readouterr().out
    for line in ("cases              6 (3 normal, 3 abnormal)", "AUROC ", "oracle: chosen on test labels"):
        assert line in printed
    for name in ("metrics.json", "localisation.json", "scores.csv"):
        assert f"{name.partition('.')[0]}: {tmp_path / 'cwd/results' / name}" in printed
    assert "Not a medical device" in printed


def test_the_command_of_its_record_repeats_an_evaluation(
    tmp_path: Path, volumes: Path, trained: Path, run_command: Run, fork_server: ForkServer
) -> None:
    run = shutil.copytree(trained, tmp_path / "my RUN", ignore=shutil.ignore_patterns("logs"))
    results = tmp_path / "results"
    options = {"dataset_dir": volumes, "output_dir": results, "n_bootstrap": 50}
    done = run_command("monai.bundle run", run / "configs/evaluate.yaml", fresh=True, **options)
    assert done.returncode == 0, done.stderr
    record, first = json.loads((results / "run.json").read_text()), contents(results)
    assert (record["state"], record["n_cases"], record["n_failed"]) == ("finished", 6, 0)
    assert [sorted(case) for case in record["inputs"]] == [
        ["case", "image_sha256", *(["lesion_sha256"] if "abnormal" in case["case"] else [])]
        for case in record["inputs"]
    ]

    python, *arguments = shlex.split(record["command"])
    refused = fork_server.run(arguments, tmp_path, os.environ)
    assert (python, refused.returncode) == ("python", 1)
    assert "began at " + record["started"] in refused.stderr
    assert contents(results) == first
    repeated = fork_server.run([*arguments, "--overwrite", "True"], tmp_path, os.environ)
    assert repeated.returncode == 0, repeated.stderr
    assert contents(results) == first


def test_a_lesion_is_found_where_the_mask_of_an_inference_covers_it(
    volumes: Path, evaluated: Any, inferred: Path
) -> None:
    of_cases = {row["case"]: row for row in table(volumes / "manifest.csv")}
    listed = table(evaluated.results / "lesions.csv")
    for row in listed:
        case = row["case"]
        truth = np.asarray(nib.load(volumes / of_cases[case]["mask"]).dataobj) > 0
        lesion = ndimage.label(truth, np.ones((3, 3, 3)))[0] == int(row["lesion"])
        values, mask = (
            np.asarray(nib.load(inferred / f"{case}_{name}.nii.gz").dataobj) for name in ("anomaly_map", "anomaly_mask")
        )
        assert int(row["n_voxels"]) == lesion.sum()
        assert float(row["map_value"]) == pytest.approx(values[lesion].max(), rel=1e-4)
        assert int(row["found"]) == mask[lesion].any()
    assert len({row["case"] for row in listed}) == 3


def test_voxel_numbers_are_those_of_the_maps_that_inference_writes(
    volumes: Path, evaluated: Any, inferred: Path
) -> None:
    report = json.loads((evaluated.results / "localisation.json").read_text())
    voxels, lesions, sizes = VoxelMetrics(), LesionMetrics(), []
    for row in table(volumes / "manifest.csv"):
        if row["split"] == "test":
            image = nib.load(inferred / f"{row['case']}_anomaly_map.nii.gz")
            values = np.asarray(image.dataobj)
            truth = np.asarray(nib.load(volumes / row["mask"]).dataobj) if row["mask"] else np.zeros(values.shape)
            assert truth.any() == (row["abnormal"] == "1")
            scan = torch.tensor(np.asarray(nib.load(volumes / row["path"]).dataobj))[None]
            inside = (ScaleForegroundd("image")({"image": scan})["image"] > 0)[0].numpy()
            assert 0.9 < inside.mean() < 1
            voxels.update(values, truth, inside)
            lesions.update(values, truth, image.header.get_zooms(), inside)
            sizes.append((inside | (truth > 0)).sum())
    expected = {**voxels.compute(report["map_threshold"]), **lesions.compute()}
    for name, value in expected.items():
        assert report[name] == pytest.approx(value, rel=1e-4), name
    assert report["n_voxels"] == sum(sizes)
    assert (report["n_volumes"], report["n_abnormal_volumes"], report["n_abnormal_without_mask"]) == (6, 3, 0)


def test_abnormal_cases_without_masks_are_not_evaluated(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run
) -> None:
    rows = [row for row in table(volumes / "manifest.csv") if row["abnormal"] == "1"]
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "abnormal"])
        writer.writerows([volumes / row["path"], "test", 1] for row in rows)
    where = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "results")}
    with pytest.raises(RuntimeError) as raised:
        run_workflow(trained / "configs/evaluate.yaml", **where)
    assert "got labels {1} and no masks. Label them or add masks, or use inference.yaml" in said(raised)
    assert files_below(tmp_path) == {"manifest.csv"}

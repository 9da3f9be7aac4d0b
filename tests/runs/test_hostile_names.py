"""What a data set is called never becomes code: names of folders, files and cases stay text."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outputs import table

Run = Callable[..., Any]

NAMES = ["$import os", "@network", "%network_def", "$open('hacked', 'w')", "{given}", "a#b@#c"]


def cases(path: Path) -> set[str]:
    return {row["case"].removeprefix("'") for row in table(path)}  # the sign that keeps a spreadsheet from running it


@pytest.fixture
def data(tmp_path: Path, volumes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Volumes with such names, in folders with such names."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "100% #1 @given"
    for number, name in enumerate(NAMES):
        source = volumes / f"images/test_{'abnormal' if number % 2 else 'normal'}_{number // 2:03d}.nii.gz"
        (folder / name).mkdir(parents=True)
        shutil.copy(source, folder / name / f"{name}.nii.gz")
    return folder


def test_names_of_files_and_folders_stay_text(tmp_path: Path, data: Path, trained: Path, run_workflow: Run) -> None:
    where = {"dataset_dir": str(data), "output_dir": str(tmp_path / "$1 #2")}
    run_workflow(trained / "configs/inference.yaml", **where, outputs=["anomaly_map"])
    out = tmp_path / "$1 #2"
    assert cases(out / "scores.csv") == {*NAMES}
    assert {file.name for file in out.glob("*.nii.gz")} == {f"{name}_anomaly_map.nii.gz" for name in NAMES}
    assert not list(tmp_path.rglob("hacked"))


def test_names_in_a_manifest_stay_text(tmp_path: Path, data: Path, trained: Path, run_workflow: Run) -> None:
    shutil.copytree(trained, tmp_path / "RUN")
    with (data / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "split", "abnormal", "case", "patient"])
        for number, name in enumerate(NAMES):
            rows.writerow([f"{name}/{name}.nii.gz", "test", number % 2, f"{name} case", f"$1/0 {number}"])
    where = {"dataset_dir": str(data), "output_dir": str(tmp_path / "results")}
    run_workflow(tmp_path / "RUN/configs/evaluate.yaml", **where, n_bootstrap=10)
    assert cases(tmp_path / "results/scores.csv") == {f"{name} case" for name in NAMES}
    assert not list(tmp_path.rglob("hacked"))

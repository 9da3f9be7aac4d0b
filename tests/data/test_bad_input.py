import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from outputs import files_below

Run = Callable[..., Any]


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def save(file: Path, array: Any, affine: Any) -> None:
    nib.save(nib.Nifti1Image(np.asarray(array, dtype=np.float32), affine), file)


def spoil(good: Path, folder: Path) -> dict[str, str]:
    """Writes a file of each bad kind; gives what its message has to say."""
    image = nib.load(good)
    voxels, affine = np.asarray(image.dataobj, dtype=np.float32), image.affine
    content = good.read_bytes()
    (folder / "truncated.nii.gz").write_bytes(content[: len(content) // 2])
    (folder / "text.nii.gz").write_text("not an image")
    (folder / "text.png").write_text("not an image")
    save(folder / "zeros.nii.gz", 0 * voxels, affine)
    save(folder / "series.nii.gz", np.stack([voxels] * 3, axis=-1), affine)
    save(folder / "strip.nii.gz", voxels[:, :1], np.eye(4))
    hole = voxels.copy()
    hole[3, 3, 3] = np.nan
    save(folder / "nan.nii.gz", hole, affine)
    flat = nib.Nifti1Image(voxels, affine)
    flat.header["sform_code"], flat.header["qform_code"] = 2, 0
    for row in "xyz":
        flat.header[f"srow_{row}"] = 0
    header = flat.header.copy()
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header.set_data_dtype(np.float32)
    (folder / "flat.nii").write_bytes(header.binaryblock + bytes(4) + voxels.tobytes(order="F"))
    return {
        "truncated": "truncated file: its compressed data end too early. Copy or export",
        "text_nii_gz": "not compressed with gzip. Is it an image?",
        "text_png": "content that no reader knows, beginning with b'not an image'",
        "zeros": "got the same value, 0, in all voxels",
        "series": "split a series (4D) into volumes",
        "strip": "got one voxel from posterior to anterior",
        "nan": "got 1 of",
        "flat": "Expected an affine that can be inverted",
    }


def test_inference_names_each_bad_file_and_goes_on(
    tmp_path: Path, volumes: Path, trained: Path, run_command: Run
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    good = next(iter(sorted((volumes / "images").glob("*.nii.gz"))))
    # first and last, so that the good ones stand on both sides of the bad ones
    for name in ("a_good.nii.gz", "z_good.nii.gz"):
        shutil.copy(good, folder / name)
    expected = spoil(good, folder)
    done = run_command("monai.bundle run", trained / "configs/inference.yaml", dataset_dir=folder, output_dir=out)
    assert done.returncode == 1, done.stderr
    failed = rows(out / "failures.csv")
    assert failed.keys() == expected.keys()
    summary = done.stderr[done.stderr.rindex("The run failed:") :]
    assert f"{len(expected)} of {len(expected) + 2} cases failed" in summary
    assert f"The outputs of the other 2 are in {out}" in summary
    for case, text in expected.items():
        file = failed[case]["file"]
        assert Path(file).is_file()
        assert text in failed[case]["message"]
        assert file in failed[case]["message"]
        (line,) = (line for line in summary.splitlines() if line.startswith(f"- {case} (read): "))
        assert file in line
        assert f"Case {case} failed: " in done.stdout + done.stderr
    assert list(rows(out / "scores.csv")) == ["a_good", "z_good"]
    for case in ("a_good", "z_good"):
        assert nib.load(out / f"{case}_anomaly_map.nii.gz").shape == nib.load(good).shape
    assert not [name for name in files_below(out) if name.split("_")[0] not in ("a", "z", "scores.csv", "failures.csv")]


def test_a_run_of_bad_files_only_says_so(tmp_path: Path, trained: Path, run_workflow: Run) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/empty.nii.gz").touch()
    options = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(RuntimeError) as raised:
        run_workflow(trained / "configs/inference.yaml", **options)
    message = str(raised.value.__cause__)
    assert message.startswith("The only case failed:")
    assert "empty.nii.gz; got an empty file" in message
    assert "The outputs of" not in message


def test_evaluation_reports_on_the_cases_that_did_not_fail(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(volumes, data)
    shutil.copytree(trained, tmp_path / "RUN")  # whose model card gets the tables
    config = tmp_path / "RUN/configs/evaluate.yaml"
    options = {"dataset_dir": str(data), "output_dir": str(out), "n_bootstrap": 10}
    (data / "images/test_normal_001.nii.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(RuntimeError) as raised:
        run_workflow(config, **options)
    assert "1 of 6 cases failed" in str(raised.value.__cause__)
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["n"], metrics["n_failed"]) == (5, 1)

    # no normal case is left: no metrics, and none of the earlier run either
    for file in (data / "images").glob("test_normal_*.nii.gz"):
        file.write_bytes(b"\x1f\x8b")
    with pytest.raises(RuntimeError) as raised:
        run_workflow(config, **options, overwrite=True)
    assert "3 of 6 cases failed" in str(raised.value.__cause__)
    assert not (out / "metrics.json").exists()
    assert len(rows(out / "scores.csv")) == 3


def test_a_later_run_without_failures_removes_the_list_of_the_earlier(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run
) -> None:
    (tmp_path / "failures.csv").write_text("case,file,stage,message\n")
    image = volumes / "images/test_abnormal_000.nii.gz"
    options = {"dataset_dir": str(image), "output_dir": str(tmp_path), "overwrite": True}
    run_workflow(trained / "configs/inference.yaml", **options)
    assert (tmp_path / "scores.csv").exists()
    assert not (tmp_path / "failures.csv").exists()

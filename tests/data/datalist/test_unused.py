"""What lies in a folder and is not used is counted and said."""

import logging
from pathlib import Path

import pytest
import torch
from inputs import write_images, write_json
from monai.data import MetaTensor

from aeflow_monai.data.datalist import find_images, list_unused, load_datalist
from aeflow_monai.output.maps import WriteMapsd


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two volumes, and one of each kind that is no image of the layout."""
    write_images(tmp_path, ["a.nii.gz", "b.mhd", "b.raw", "a_mask.nii.gz", "c_seg.nii.gz", "a_brain_mask.nii.gz"])
    write_images(tmp_path, ["picture.png", "notes.txt", "a.json", "array.npy", ".hidden/x.nii", "no_suffix"])
    case = {"case": "a", "residual": MetaTensor(torch.rand(1, 2, 3, 2), affine=torch.eye(4, dtype=torch.float64))}
    WriteMapsd(["residual"], tmp_path / "maps")(case)
    for name in ("scores.csv", "failures.csv", "a_slices.csv", "metrics.json"):
        (tmp_path / "maps" / name).touch()
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "d.mhd").symlink_to("b.mhd")
    (tmp_path / "IM1").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "lost").symlink_to("nowhere")
    return tmp_path


def test_each_kind_is_counted_and_named(mixed: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    items = load_datalist(mixed, "train", layout="folder")
    assert [(item["case"], item["label"]) for item in items] == [("a", 1), ("b", 0)]
    unused = list_unused(mixed, layout="folder")
    assert unused.counts() == {
        "masks that are not used": 1,
        "masks of organs or tissue": 1,
        "outputs of earlier runs": 5,
        "images that the layout does not read": 1,
        "images listed by another path": 1,
        "DICOM files": 1,
        "links to nothing": 1,
        "links to folders that are read already": 1,
        "hidden files and folders": 1,
        "files of other kinds": 4,
        "files of other kinds: .json": 1,
        "files of other kinds: .npy": 1,
        "files of other kinds: .txt": 1,
        "files of other kinds: no_suffix": 1,
    }
    said = [record for record in caplog.records if record.getMessage() == str(unused)]
    assert [record.levelname for record in said] == ["WARNING"]  # c may be an image with a lesion
    assert "1 masks that are not used (c_seg.nii.gz); 1 masks of organs or tissue (a_brain_mask.nii.gz)" in str(unused)
    assert "outputs of earlier runs (maps/a_residual.nii.gz, maps/a_slices.csv, maps/failures.csv and 2 more)" in str(
        unused
    )
    assert "2 cases of the section 'train' in" in caplog.text


def test_inference_says_it_too(mixed: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (mixed / "IM1").unlink()
    (mixed / "lost").unlink()
    assert {item["case"] for item in find_images(mixed)} == {"a", "b", "picture"}
    assert "3 cases in" in caplog.text
    assert "2 masks that are not used (a_mask.nii.gz, c_seg.nii.gz)" in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_everything_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_images(tmp_path, ["a.nii.gz", "m.nii.gz"])
    write_json(tmp_path, {"training": [{"image": "./a.nii.gz", "mask": "./m.nii.gz"}]})
    load_datalist(tmp_path, "train")
    assert "Not used" not in caplog.text
    assert str(list_unused(tmp_path)) == f"Everything in {tmp_path} is used."


def test_names_reach_no_terminal_raw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_images(tmp_path, ["a.nii.gz", "red\x1b[31m.txt", "line\nERROR forged.txt"])
    load_datalist(tmp_path, "train")
    assert r"red\x1b[31m.txt" in caplog.text
    assert "\x1b" not in caplog.text
    assert "\nERROR" not in caplog.text


def test_what_a_class_folder_does_not_read(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/NORMAL/a.png", "train/b.png", "ground_truth/c.png", "train/NORMAL/note.txt"])
    unused = list_unused(tmp_path)
    assert {kind: [path.name for path in paths] for kind, paths in unused.kinds.items()} == {
        "masks that are not used": ["c.png"],
        "images that the layout does not read": ["b.png"],
        "files of other kinds": ["note.txt"],
    }

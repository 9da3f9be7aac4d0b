import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from aeflow_monai.data.datalist import load_datalist
from aeflow_monai.data.prepare import prepare_data
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.errors import CaseFailures

TRAIN = Path(__file__).parents[2] / "bundle/configs/train.yaml"


@pytest.fixture(scope="module")
def preprocessing() -> Any:
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    return parser.get_parsed_content("preprocessing")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """BraTS-like: 3 patients of 10 slices of 4 mm; slices 5 to 7 hold a lesion of 36 pixels, slice 1 is empty."""
    for name in ("BraTS_00001", "BraTS_00002", "BraTS_00003"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        volume = np.random.default_rng(0).integers(100, 200, (20, 20, 10)).astype(np.int16)
        volume[:2], volume[..., 0] = 0, 0
        lesion = np.zeros_like(volume)
        lesion[5:11, 5:11, 4:7] = 1
        affine = np.diag([1.0, 1.0, 4.0, 1.0])
        nib.save(nib.Nifti1Image(volume, affine), folder / f"{name}_flair.nii.gz")
        nib.save(nib.Nifti1Image(lesion, affine), folder / f"{name}_seg.nii.gz")
    return tmp_path / "data"


def prepare(data: Path, preprocessing: Any, path: Path, **options: Any) -> dict[str, Any]:
    slicer = Slicer(min_foreground=0.05, normal_margin_mm=5.0)
    prepare_data(data, preprocessing, slicer, path, **{"layout": "brats", "test_fraction": 0.34, "seed": 0, **options})
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_slices_are_told_by_kind_and_counted_from_one(
    data: Path, preprocessing: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = prepare(data, preprocessing, tmp_path / "out/dataset.json")
    assert (len(content["training"]), len(content["test"])) == (2, 1)
    for entry in content["training"] + content["test"]:
        kinds = {"normal": [2, 3, 9, 10], "abnormal": [5, 6, 7], "unclear": [4, 8], "skipped": [1]}
        assert entry["slices"] == {"axial": kinds}
    told = capsys.readouterr().out
    cases = "training: 2 cases of 2 patients (0 normal, 2 abnormal)"
    assert f"{cases}; 20 slices: 8 normal, 6 abnormal, 4 unclear, 2 skipped" in told
    assert content["prepared"]["policy"]["normal_margin_mm"] == 5.0
    assert content["prepared"]["listing"]["test_fraction"] == 0.34


def test_the_datalist_gives_the_same_split_and_is_the_same_when_made_again(
    data: Path, preprocessing: Any, tmp_path: Path
) -> None:
    path, again = tmp_path / "out/dataset.json", tmp_path / "again/dataset.json"
    prepare(data, preprocessing, path)
    prepare(data, preprocessing, again)
    assert path.read_text() == again.read_text()
    for section in ("train", "test"):
        straight = load_datalist(data, section, layout="brats", test_fraction=0.34, seed=0)
        listed = load_datalist(path, section)
        for one, two in zip(straight, listed, strict=True):
            assert Path(one["image"]).samefile(two["image"])
            assert Path(one["lesion"]).samefile(two["lesion"])
            assert (one["case"], one["patient"], one["label"]) == (two["case"], two["patient"], two["label"])


def test_a_file_that_changed_since_is_named(data: Path, preprocessing: Any, tmp_path: Path) -> None:
    path = tmp_path / "out/dataset.json"
    prepare(data, preprocessing, path)
    item = load_datalist(path, "test")[0]
    assert tuple(preprocessing(item)["image"].shape) == (1, 20, 20, 10)
    shutil.copy(item["lesion"], item["image"])
    with pytest.raises(RuntimeError) as raised:
        preprocessing(item)
    assert "changed since the data set was prepared" in str(raised.value.__cause__)


def test_voxels_beside_their_header_that_changed_since_are_named(
    data: Path, preprocessing: Any, tmp_path: Path
) -> None:
    header = "NDims = 3\nDimSize = 20 20 10\nElementType = MET_SHORT\nElementSpacing = 1 1 4\n"
    header += (
        "TransformMatrix = -1 0 0 0 -1 0 0 0 1\nElementDataFile = flair.raw\n"  # to the left and back, as ITK has it
    )
    for file in sorted(data.rglob("*_flair.nii.gz")):
        (file.parent / "flair.raw").write_bytes(np.asarray(nib.load(file).dataobj, np.int16).tobytes("F"))
        file.with_name(file.name.replace("nii.gz", "mhd")).write_text(f"ObjectType = Image\n{header}")
        file.unlink()
    path = tmp_path / "out/dataset.json"
    prepare(data, preprocessing, path)
    item = load_datalist(path, "test")[0]
    assert tuple(preprocessing(item)["image"].shape) == (1, 20, 20, 10)
    voxels = Path(item["image"]).with_name("flair.raw")
    voxels.write_bytes(bytes(len(voxels.read_bytes())))
    with pytest.raises(RuntimeError) as raised:
        preprocessing(item)
    assert f"{voxels} changed since the data set was prepared" in str(raised.value.__cause__)


def test_unreadable_cases_are_listed_and_the_others_written(data: Path, preprocessing: Any, tmp_path: Path) -> None:
    broken = data / "BraTS_00002/BraTS_00002_flair.nii.gz"
    broken.write_bytes(broken.read_bytes()[:500])
    path = tmp_path / "out/dataset.json"
    with pytest.raises(CaseFailures, match=r"1 of 3 cases failed:\n- BraTS_00002"):
        prepare(data, preprocessing, path)
    content = json.loads(path.read_text())
    assert "BraTS_00002" not in {entry["case"] for entry in content["training"] + content["test"]}
    with (tmp_path / "out/failures.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["BraTS_00002"]


def test_it_replaces_no_datalist_and_no_table(data: Path, preprocessing: Any, tmp_path: Path) -> None:
    path = tmp_path / "out/dataset.json"
    prepare(data, preprocessing, path)
    with pytest.raises(ValueError, match=r"out holds dataset\.json, which would be lost\. Give another folder"):
        prepare(path, preprocessing, path, layout="auto", test_fraction=0.0)
    (tmp_path / "failures.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"holds failures\.csv, which would be lost"):
        prepare(data, preprocessing, tmp_path / "dataset.json")
    assert (tmp_path / "failures.csv").read_text() == "mine"


def test_validation_images_stay_what_they_are(data: Path, preprocessing: Any, tmp_path: Path) -> None:
    cases = sorted(data.glob("*/*_flair.nii.gz"))
    rows = [f"{case},{split},0" for case, split in zip(cases, ("train", "val", "test"), strict=True)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,split,abnormal", *rows]))
    content = prepare(
        tmp_path / "manifest.csv", preprocessing, tmp_path / "out/dataset.json", layout="manifest", test_fraction=0.0
    )
    assert [len(content[name]) for name in ("training", "validation", "test")] == [1, 1, 1]
    for section in ("train", "validation", "test"):
        of_list, of_table = (
            [Path(item["image"]).name for item in load_datalist(path, section)]
            for path in (tmp_path / "out/dataset.json", tmp_path / "manifest.csv")
        )
        assert of_list == of_table


def test_a_set_without_a_test_has_none(data: Path, preprocessing: Any, tmp_path: Path) -> None:
    content = prepare(data, preprocessing, tmp_path / "out/dataset.json", test_fraction=0.0)
    assert len(content["training"]) == 3
    assert "test" not in content

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from inputs import write_image, write_images
from monai.transforms import EnsureChannelFirstd, LoadImaged

from aeflow_monai.data.datalist import find_images, load_datalist, split_normals

MODALITIES = ("flair", "t1", "t1ce", "t2")


def brats_case(case: str, endings: Sequence[str] = (*MODALITIES, "seg"), extension: str = ".nii.gz") -> list[str]:
    return [f"{case}/{case}_{ending}{extension}" for ending in endings]


def short(items: Sequence[dict[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(item.get(key) for key in keys) for item in items]


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    """Ten cases, the last with uncompressed files."""
    names = [name for i in range(9) for name in brats_case(f"BraTS2021_{i:05d}")]
    return write_images(tmp_path, [*names, *brats_case("BraTS2021_00009", extension=".nii")])


# BraTS


def test_brats(brats: Path) -> None:
    items = load_datalist(brats, "train")
    assert items == load_datalist(brats, "all", layout="brats", modalities="flair")
    case = "BraTS2021_00000"
    assert items[0] == {
        "image": str(brats / case / f"{case}_flair.nii.gz"),
        "case": case,
        "patient": case,
        "label": 1,
        "lesion": str(brats / case / f"{case}_seg.nii.gz"),
    }
    assert len(items) == 10
    assert items[9]["image"].endswith("_flair.nii")


def test_brats_masks_are_not_read(brats: Path) -> None:
    for mask in brats.glob("*/*_seg*"):
        mask.write_bytes(b"no volume")
    assert {item["label"] for item in load_datalist(brats, "train")} == {1}


def test_brats_modalities_become_channels_in_the_order_asked(brats: Path) -> None:
    folder = brats / "BraTS2021_00003"
    for value, name in enumerate(MODALITIES):
        write_image(folder / f"{folder.name}_{name}.nii.gz", value)
    item = load_datalist(brats, "all", modalities=("t2", "flair", "t1ce"))[3]
    assert [Path(path).name for path in item["image"]] == [
        f"{folder.name}_{name}.nii.gz" for name in ("t2", "flair", "t1ce")
    ]
    image = LoadImaged("image", reader=["ITKReader", "NibabelReader"], image_only=True)(item)
    assert EnsureChannelFirstd("image")(image)["image"].shape == (3, 2, 3, 2)
    assert image["image"][:, 0, 0, 0].tolist() == [3, 0, 2]


def test_brats_case_without_a_modality_is_named_and_the_others_go_on(brats: Path) -> None:
    (brats / "BraTS2021_00002/BraTS2021_00002_t1ce.nii.gz").unlink()
    items = load_datalist(brats, "all", modalities=("t1ce", "t2"))
    assert ["problem" in item for item in items].index(True) == 2
    assert sum("problem" in item for item in items) == 1
    case = "BraTS2021_00002"
    assert items[2]["problem"] == (
        f"The case {case} in {brats / case} lacks the modality t1ce; asked for t1ce, t2; found: {case}_flair.nii.gz, "
        f"{case}_seg.nii.gz, {case}_t1.nii.gz, {case}_t2.nii.gz. Add the file, or ask for other modalities with "
        "--modalities."
    )
    assert items[2]["case"] == case
    assert [item["case"] for item in find_images(brats, modalities=("t1ce", "t2")) if "problem" in item] == [case]
    assert not any("problem" in item for item in load_datalist(brats, "all", modalities="t2"))


def test_brats_case_without_a_mask(brats: Path) -> None:
    folder = brats / "BraTS2021_00001"
    (folder / f"{folder.name}_seg.nii.gz").rename(folder / "W39_1998.09.19_Segm.nii.gz")
    items = load_datalist(brats, "all")
    assert sum("problem" in item for item in items) == 1
    problem = items[1]["problem"]
    assert f"in {folder} has no mask {folder.name}_seg.nii.gz; found: " in problem
    assert "W39_1998.09.19_Segm.nii.gz" in problem
    assert not any("problem" in item for item in find_images(brats))


def test_brats_case_with_the_mask_of_another(brats: Path) -> None:
    folder = brats / "BraTS2021_00001"
    (folder / f"{folder.name}_seg.nii.gz").rename(folder / "BraTS2021_00000_seg.nii.gz")
    items = load_datalist(brats, "all")
    assert not any(item.get("lesion", "").startswith(str(folder)) for item in items if "problem" not in item)
    problems = [item["problem"] for item in items if "problem" in item]
    assert any(f"The case BraTS2021_00001 in {folder} has no mask BraTS2021_00001_seg.nii.gz" in p for p in problems)
    assert any(f"The case BraTS2021_00000 in {folder} lacks the modality flair" in problem for problem in problems)


@pytest.mark.parametrize("second", ["mask", "t1_mask", "brain_parenchyma_segmentation"])
def test_brats_masks_of_other_names_are_no_second_raters(brats: Path, second: str) -> None:
    folder = brats / "BraTS2021_00001"
    shutil.copy(folder / f"{folder.name}_seg.nii.gz", folder / f"{folder.name}_{second}.nii.gz")
    assert not any("problem" in item for item in load_datalist(brats, "all"))


def test_brats_mask_whose_name_begins_as_a_folder_of_other_things(brats: Path) -> None:
    folder = brats / "BraTS2021_00001"
    (folder / f"{folder.name}_seg.nii.gz").rename(folder / "tumor_seg.nii.gz")
    write_image(brats / "tumor/notes.nii.gz")
    (item,) = (item for item in load_datalist(brats, "all") if item["case"] == folder.name)
    assert item["lesion"] == str(folder / "tumor_seg.nii.gz")


@pytest.mark.parametrize("second", ["seg_2", "pred_seg"])
def test_brats_case_with_several_masks(brats: Path, second: str) -> None:
    folder = brats / "BraTS2021_00001"
    shutil.copy(folder / f"{folder.name}_seg.nii.gz", folder / f"{folder.name}_{second}.nii.gz")
    (problem,) = (item["problem"] for item in load_datalist(brats, "all") if "problem" in item)
    assert "has 2 masks: " in problem
    assert f"{folder.name}_{second}.nii.gz" in problem


def test_brats_in_which_nothing_can_be_used(tmp_path: Path) -> None:
    write_images(tmp_path, [*brats_case("a", ["flair"]), *brats_case("b", ["flair"])])
    with pytest.raises(ValueError, match=r"None of the 2 cases in .* can be used\. The first: The case a .* no mask"):
        load_datalist(tmp_path, "train")
    assert [item["case"] for item in find_images(tmp_path)] == ["a", "b"]


def test_brats_below_a_folder_and_of_2023(tmp_path: Path) -> None:
    names = [
        f"Training/BraTS-GLI-{case}/BraTS-GLI-{case}-{ending}.nii.gz"
        for case in ("00001-000", "00001-001", "00002-000")
        for ending in ("t1n", "t1c", "t2w", "t2f", "seg")
    ]
    write_images(tmp_path, names)
    items = load_datalist(tmp_path, "all", modalities=("flair", "t1ce"))
    assert short(items, "case", "patient") == [
        ("BraTS-GLI-00001-000", "BraTS-GLI-00001"),
        ("BraTS-GLI-00001-001", "BraTS-GLI-00001"),
        ("BraTS-GLI-00002-000", "BraTS-GLI-00002"),
    ]
    assert [Path(path).name[20:] for path in items[0]["image"]] == ["t2f.nii.gz", "t1c.nii.gz"]


def test_brats_inference_takes_one_item_per_case(brats: Path) -> None:
    items = find_images(brats, modalities=("flair", "t2"))
    assert len(items) == 10
    assert set(items[0]) == {"image", "case", "patient"}
    assert [len(item["image"]) for item in items] == [2] * 10


def test_outputs_below_a_brats_folder_are_passed_over(brats: Path) -> None:
    write_images(brats, [f"maps/BraTS2021_{i:05d}_anomaly_map.nii.gz" for i in range(3)])
    assert len(find_images(brats, exclude=brats / "maps")) == 10


# Splits by patient


def test_test_fraction_divides_patients(brats: Path) -> None:
    train, test = (load_datalist(brats, section, test_fraction=0.3, seed=5) for section in ("train", "test"))
    assert (len(train), len(test)) == (7, 3)
    assert sorted(short(train + test, "case")) == sorted(short(load_datalist(brats, "all"), "case"))
    assert test == load_datalist(brats, "test", test_fraction=0.3, seed=5)
    assert test != load_datalist(brats, "test", test_fraction=0.3, seed=6)
    with pytest.raises(ValueError, match=r"'test'; found 10 in images without a split\. .*--test_fraction 0\.2"):
        load_datalist(brats, "test")


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_test_fraction_out_of_range(brats: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match=r"test_fraction has to lie between 0 and 1, 1 excluded; got"):
        load_datalist(brats, "test", test_fraction=fraction)


def test_test_fraction_where_the_split_is_given(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/NORMAL/a.nii", "test/NORMAL/b.nii"])
    with pytest.raises(ValueError, match=r"test_fraction is 0\.2, but the layout 'classes' of .* says itself"):
        load_datalist(tmp_path, "train", test_fraction=0.2)


def test_sessions_of_a_patient_stay_together(tmp_path: Path) -> None:
    names = [f"sub-{i:02d}/ses-{k}/anat/sub-{i:02d}_ses-{k}_T1w.nii.gz" for i in range(8) for k in range(3)]
    write_images(tmp_path, names)
    for seed in range(5):
        train, test = (load_datalist(tmp_path, name, test_fraction=0.25, seed=seed) for name in ("train", "test"))
        fit, calibration = split_normals(train, 0.3, seed)
        parts = [{item["patient"] for item in part} for part in (fit, calibration, test)]
        assert [len(part) for part in parts] == [4, 2, 2]
        assert len(set.union(*parts)) == 8
        assert len(fit + calibration + test) == 24


def test_lesion_free_slices(brats: Path) -> None:
    (brats / "BraTS2021_00002/BraTS2021_00002_seg.nii.gz").unlink()
    items = load_datalist(brats, "train")
    with pytest.raises(ValueError, match=r"none of 10 items has the label 0\. .*lesion_free_slices .* 9 items"):
        split_normals(items)
    fit, calibration = split_normals(items, 0.2, lesion_free_slices=True)
    assert len(calibration) == 2
    assert not any("problem" in item for item in calibration)
    assert [item["case"] for item in fit if "problem" in item] == ["BraTS2021_00002"]
    assert len(fit) == 8


# BIDS


def test_bids(tmp_path: Path) -> None:
    write_images(
        tmp_path,
        [
            "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
            "sub-01/ses-b/anat/sub-01_ses-b_run-1_T1w.nii.gz",
            "sub-01/ses-b/anat/sub-01_ses-b_run-2_T1w.nii.gz",
            "sub-01/ses-b/func/sub-01_ses-b_bold.nii.gz",
            "sub-02/anat/sub-02_T1w.nii.gz",
            "sub-02/anat/sub-02_FLAIR.nii.gz",
            "derivatives/masks/sub-01/ses-a/anat/sub-01_ses-a_label-lesion_mask.nii.gz",
            "derivatives/fmriprep/sub-02/anat/sub-02_desc-brain_mask.nii.gz",
            "derivatives/fmriprep/sub-01/anat/sub-01_ses-a_space-MNI_dseg.nii.gz",
        ],
    )
    items = load_datalist(tmp_path, "train")
    assert short(items, "case", "patient", "label") == [
        ("sub-01_ses-a", "sub-01", 1),
        ("sub-01_ses-b_run-1", "sub-01", 0),
        ("sub-01_ses-b_run-2", "sub-01", 0),
        ("sub-02", "sub-02", 0),
    ]
    assert [Path(item["lesion"]).name for item in items if "lesion" in item] == [
        "sub-01_ses-a_label-lesion_mask.nii.gz"
    ]
    assert items == load_datalist(tmp_path, "all", layout="bids", modalities="T1w")
    assert short(find_images(tmp_path), "case") == short(items, "case")


def test_bids_subject_without_a_modality(tmp_path: Path) -> None:
    names = ["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"]
    write_images(tmp_path, [*names, "sub-03/anat/sub-03_T2w.nii.gz"])
    items = load_datalist(tmp_path, "train", modalities=("T1w", "FLAIR"))
    assert ["problem" in item for item in sorted(items, key=lambda item: item["case"])] == [False, True, True]
    problems = {item["case"]: item["problem"] for item in items if "problem" in item}
    assert "sub-02 in" in problems["sub-02"]
    assert "lacks the modality FLAIR; asked for T1w, FLAIR; found: sub-02_T1w.nii.gz." in problems["sub-02"]
    assert "lacks the modality T1w, FLAIR" in problems["sub-03"]


def test_names_of_subjects_say_nothing_of_masks(tmp_path: Path) -> None:
    for subject in ("sub-wm1", "sub-stroke2"):
        write_images(tmp_path, [f"{subject}/anat/{subject}_T1w.nii.gz", f"derivatives/{subject}_roi.nii.gz"])
    write_image(tmp_path / "derivatives/sub-stroke2_desc-brain_mask.nii.gz")
    masks = [Path(item["lesion"]).name for item in load_datalist(tmp_path, "all")]
    assert masks == ["sub-stroke2_roi.nii.gz", "sub-wm1_roi.nii.gz"]


def test_link_to_a_file_that_was_not_fetched(tmp_path: Path) -> None:
    write_images(tmp_path, ["sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/notes.txt"])
    (tmp_path / "sub-02/anat/sub-02_T1w.nii.gz").symlink_to(tmp_path / "annex/object")
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 files listed in .* are missing: .*sub-02_T1w\.nii\.gz"):
        load_datalist(tmp_path, "train")


def test_bids_with_two_masks(tmp_path: Path) -> None:
    names = [f"sub-{i}/anat/sub-{i}_T1w.nii.gz" for i in (1, 2)]
    write_images(tmp_path, [*names, "derivatives/a/sub-1_roi.nii.gz", "derivatives/b/sub-1_roi.nii.gz"])
    items = load_datalist(tmp_path, "all")
    assert "sub-1_roi.nii.gz and" not in items[0]["problem"]
    assert "has 2 masks: " in items[0]["problem"]
    assert "problem" not in items[1]


# Plain folders


def test_folder_of_volumes(tmp_path: Path) -> None:
    write_images(tmp_path, ["sub-01_T1w.nii.gz", "sub-01_ses-2_T1w.nii.gz", "b.nrrd", "c.mha", "d.mhd", "e.txt"])
    items = load_datalist(tmp_path, "train")
    assert short(items, "case", "patient", "label") == [
        ("b", "b", 0),
        ("c", "c", 0),
        ("d", "d", 0),
        ("sub-01_T1w", "sub-01", 0),
        ("sub-01_ses-2_T1w", "sub-01", 0),
    ]
    assert items == load_datalist(tmp_path, "all", layout="folder")
    assert len(load_datalist(tmp_path, "test", test_fraction=0.25)) == 1


def test_folder_of_patients_has_to_be_asked_for(tmp_path: Path) -> None:
    write_images(tmp_path, [f"p{i}/{name}.nii.gz" for i in (1, 2) for name in ("T1", "FLAIR")])
    with pytest.raises(ValueError, match=r"None of the class folders .* found: p1, p2\. .*--layout folder"):
        load_datalist(tmp_path, "train")
    items = load_datalist(tmp_path, "train", layout="folder", modalities=("FLAIR", "T1"))
    assert short(items, "case", "patient", "label") == [("p1", "p1", 0), ("p2", "p2", 0)]
    assert items[1]["image"] == [str(tmp_path / "p2/FLAIR.nii.gz"), str(tmp_path / "p2/T1.nii.gz")]
    assert short(load_datalist(tmp_path, "train", layout="folder"), "case", "patient")[0] == ("p1_FLAIR", "p1")
    assert [item["case"] for item in find_images(tmp_path, modalities="T1")] == ["p1", "p2"]


def test_folder_of_pictures(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.jpg", "b_mask.png", "notes.txt"])
    items = load_datalist(tmp_path, "all")
    assert short(items, "case", "patient", "label") == [("a", "a", 0), ("b", "b", 1)]
    assert items[1]["lesion"] == str(tmp_path / "b_mask.png")


def test_pictures_beside_volumes_are_no_images(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.nii.gz", "a.png"])
    assert short(load_datalist(tmp_path, "train"), "case") == [("a",)]


def test_pictures_in_subfolders_have_to_be_asked_for(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "SICK/b.png"])
    with pytest.raises(ValueError, match="None of the class folders"):
        load_datalist(tmp_path, "train")
    assert short(load_datalist(tmp_path, "train", layout="folder"), "case", "patient") == [("b", "SICK"), ("a", "a")]


def test_case_whose_name_begins_as_another(tmp_path: Path) -> None:
    write_images(tmp_path, ["p1_T1.nii", "p10_T2.nii", "p1_seg.nii"])
    items = load_datalist(tmp_path, "train", modalities="T1")
    assert [(item["case"], "problem" in item) for item in items] == [("p10", True), ("p1", False)]


def test_one_modality_in_two_files(tmp_path: Path) -> None:
    write_images(tmp_path, ["p1_T1.nii", "p1_T1.nii.gz", "p2_T1.nii"])
    items = load_datalist(tmp_path, "train", modalities="T1")
    assert "p1 in" in items[0]["problem"]
    assert "has several files of the modality T1; " in items[0]["problem"]
    assert short(items, "case") == [("p1",), ("p2",)]


# Lists


def test_several_paths_in_a_table_and_a_json(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.nii", "b.nii", "c.nii", "d.nii"])
    (tmp_path / "manifest.csv").write_text(
        "path,split,abnormal,case,patient\na.nii;b.nii,train,0,one,p\nc.nii; d.nii,test,0,two,q\n"
    )
    paths = [[str(tmp_path / f"{name}.nii") for name in pair] for pair in ("ab", "cd")]
    assert [item["image"] for item in load_datalist(tmp_path, "all")] == paths
    assert short(load_datalist(tmp_path, "all"), "case", "patient") == [("one", "p"), ("two", "q")]
    assert [item["image"] for item in find_images(tmp_path)] == paths[1:]
    extra = {"sha256": {"a.nii": "00"}, "slices": [1, 2], "patient": 3}
    content = {"training": [{"image": ["./a.nii", "b.nii"], **extra}], "test": [{"image": ["c.nii", "d.nii"]}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    train, test = (load_datalist(tmp_path / "list.json", section) for section in ("train", "test"))
    assert train == [
        {
            "image": paths[0],
            "case": "a",
            "patient": "3",
            "label": 0,
            "sha256": {str(tmp_path / "a.nii"): "00"},
            "slices": [1, 2],
        }
    ]
    assert test[0]["image"] == paths[1]


def test_decathlon_with_unlabelled_test_images_can_be_divided(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{folder}/{i}.nii" for folder in ("imagesTr", "labelsTr", "imagesTs") for i in range(5)])
    content = {
        "training": [{"image": f"./imagesTr/{i}.nii", "label": f"./labelsTr/{i}.nii"} for i in range(5)],
        "test": [f"./imagesTs/{i}.nii" for i in range(5)],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    train, test = (load_datalist(tmp_path, section, test_fraction=0.4) for section in ("train", "test"))
    assert (len(train), len(test)) == (3, 2)
    assert all(item["label"] == 1 and "lesion" in item for item in train + test)
    assert len(find_images(tmp_path)) == 5
    content["test"] = [{"image": "./imagesTs/0.nii", "abnormal": 1}]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"the layout 'decathlon' of .* says itself"):
        load_datalist(tmp_path, "test", test_fraction=0.4)


# The choice of a layout


@pytest.mark.parametrize("read", [lambda path, layout: load_datalist(path, "all", layout=layout), find_images])
def test_unknown_layout(tmp_path: Path, read: Any) -> None:
    message = r"layout has to be one of auto, manifest, decathlon, medmnist, classes, bids, brats, dicom, folder; got"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, layout="nifti") if read is find_images else read(tmp_path, "nifti")


def test_a_list_comes_before_all_else(brats: Path) -> None:
    (brats / "manifest.csv").write_text("path,split,abnormal\nBraTS2021_00000/BraTS2021_00000_t1.nii.gz,train,0\n")
    assert len(load_datalist(brats, "train")) == 1
    assert len(load_datalist(brats, "train", layout="brats")) == 10


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        ("manifest", FileNotFoundError, r"The layout 'manifest' needs one manifest\.csv in .*; found none\."),
        ("decathlon", FileNotFoundError, r"needs one dataset\.json or datalist\.json in"),
        ("medmnist", FileNotFoundError, r"needs one \*\.npz in"),
        ("classes", ValueError, r"No image in the class folders"),
        (
            "brats",
            ValueError,
            r"holds no image for the section 'train'; found none at all\. Expected <case>/<case>_",
        ),
        ("bids", ValueError, r"found none at all\. Expected sub-<name>/anat"),
        ("dicom", ValueError, r"found none at all\. Expected folders of DICOM files"),
        ("folder", ValueError, r"found none at all\. Expected volumes"),
    ],
)
def test_layout_that_is_not_there(tmp_path: Path, layout: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_datalist(tmp_path, "train", layout=layout)


def test_layout_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"The layout 'brats' is one of a folder; got the file .*a\.txt"):
        load_datalist(tmp_path / "a.txt", "train", layout="brats")
    with pytest.raises(ValueError, match=r"The layout 'manifest' is a \.csv file; got .*a\.txt"):
        load_datalist(tmp_path / "a.txt", "train", layout="manifest")


def test_modalities_where_the_list_names_the_files(tmp_path: Path) -> None:
    write_images(tmp_path, ["NORMAL/a.nii"])
    with pytest.raises(ValueError, match=r"modalities are t1, but the layout 'classes' .*--layout bids or brats"):
        load_datalist(tmp_path, "train", modalities="t1")


# Real data


def real(name: str) -> Path:
    root = os.environ.get("AEFLOW_DATA")
    if not root or not Path(root, name).is_dir():
        pytest.skip(f"needs the folder {name} in the folder that the environment variable AEFLOW_DATA names")
    return Path(root, name)


def test_healthy_volumes() -> None:
    items = load_datalist(real("healthy_t1"), "train")
    assert len(items) == 58
    assert items[0]["patient"] == "sub-01"
    assert len({item["patient"] for item in items}) == 58
    assert all(item["label"] == 0 for item in items)
    assert len(load_datalist(real("healthy_t1"), "test", test_fraction=0.2)) == 12
    assert LoadImaged("image")(items[0])["image"].shape == (112, 144, 112)


def test_tumour_patients() -> None:
    root = real("brain_mri")
    items = find_images(root, layout="folder", modalities=("flair", "t1", "t1c", "t2"))
    assert len(items) == 6
    assert [item["case"] for item in items if "problem" in item] == ["Brats17_CBICA_ARF_1"]
    assert {Path(path).suffix for item in items if len(item["image"]) == 4 for path in item["image"]} == {".gz", ".mha"}
    assert len({item["patient"] for item in items}) == 6
    one = load_datalist(root, "all", layout="brats", modalities="t1ce")
    assert short([item for item in one if "problem" not in item], "case", "label") == [("Brats17_CBICA_ARF_1", 1)]


@pytest.mark.parametrize(
    "mask",
    [
        *("a_tumor", "a_WMH", "a_segmentation_manual", "a-seg-final", "mask_a", "seg-a", "a_mask_001", "a_mask001"),
        *("a_GT_001", "a_lesion_mask_v2", "a_tumor_seg_final", "a_mask_edited_final", "a_manual_segmentation_v1"),
        *("a_flair_wmh", "a_lesionSeg", "a_manualseg", "a_maskfinal", "a_segmented", "a_msk", "a_edema", "a_GTV"),
        *("a_contours", "a_lesion_seg", "a_rater1_mask", "a-lesionmask", "a_Segmentation-label", "a_mask.seg"),
        *("a-lesion", "A_mask", "lesion_mask_a", "a_rater1", "a_lung_lesion"),
    ],
)
def test_masks_by_further_names_beside_their_image(tmp_path: Path, mask: str) -> None:
    write_images(tmp_path, ["a.nii.gz", f"{mask}.nii.gz", "c.nii.gz", "b_tumor.nii.gz", "seg_b.nii.gz"])
    found = {item["case"]: item.get("lesion") for item in load_datalist(tmp_path, "all", layout="folder")}
    assert found == {"a": str(tmp_path / f"{mask}.nii.gz"), "c": None, "b_tumor": None, "seg_b": None}
    assert {item["case"] for item in find_images(tmp_path)} == set(found)


@pytest.mark.parametrize("image", ["a_T1", "a_masked", "a_post", "a_wmh_flair", "a_2", "ab_mask_a", "a_aseg", "a_bet"])
def test_images_beside_another_of_their_beginning_are_no_lesions(tmp_path: Path, image: str) -> None:
    write_images(tmp_path, ["a.nii.gz", f"{image}.nii.gz"])
    assert not any("lesion" in item for item in load_datalist(tmp_path, "all", layout="folder"))


def test_a_mask_between_the_words_of_its_image(tmp_path: Path) -> None:
    write_images(tmp_path, ["a_T1.nii.gz", "a_T2.nii.gz", "a_lesion_T1.nii.gz"])
    found = {item["case"]: item.get("lesion") for item in load_datalist(tmp_path, "all", layout="folder")}
    assert found == {"a_T1": str(tmp_path / "a_lesion_T1.nii.gz"), "a_T2": None}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a.nii.gz", "gt/a.nii.gz"),
        ("images/a.nii.gz", "segs/a_mask.nii.gz"),
        ("images/a.nii.gz", "labels_manual/a.nii.gz"),
        ("images/a.nii.gz", "lesions/a.nii.gz"),
        ("images/a.nii.gz", "masks/seg_a.nii.gz"),
        ("images/p1/a.nii.gz", "masks/p1/a.nii.gz"),
        ("images/a.nii.gz", "masks/rater1/a.nii.gz"),
        ("images/p1/a.nii.gz", "rois/p1/a.nii.gz"),
        ("e\u0301.nii.gz", "\u00e9_mask.nii.gz"),
    ],
)
def test_masks_in_folders_of_their_own(tmp_path: Path, image: str, mask: str) -> None:
    write_images(tmp_path, [image, mask, "images/p2/b.nii.gz"])
    found = {item["image"]: item.get("lesion") for item in load_datalist(tmp_path, "all", layout="folder")}
    assert found == {str(tmp_path / image): str(tmp_path / mask), str(tmp_path / "images/p2/b.nii.gz"): None}
    assert {item["image"] for item in find_images(tmp_path)} == set(found)


def test_classes_of_the_same_numbers_are_no_masks(tmp_path: Path) -> None:
    write_images(tmp_path, ["healthy/1.nii.gz", "lesions/1.nii.gz"])
    assert [item["image"] for item in find_images(tmp_path)] == [
        str(tmp_path / name) for name in ("healthy/1.nii.gz", "lesions/1.nii.gz")
    ]


def test_masks_in_formats_that_are_not_read_are_masks(tmp_path: Path) -> None:
    write_images(tmp_path, ["folder/a.nii.gz", "folder/b.nii.gz"])
    (tmp_path / "folder/b_mask.npz").write_bytes(b"no volume")
    items = load_datalist(tmp_path / "folder", "all")
    assert ["cannot be read" in item.get("problem", "") for item in items] == [False, True]
    for subject in ("sub-01", "sub-02", "sub-03"):
        write_image(tmp_path / f"bids/{subject}/anat/{subject}_T1w.nii.gz")
    write_image(tmp_path / "bids/derivatives/seg/sub-02/anat/sub-02_seg-lesion_dseg.nii.gz")
    mask = tmp_path / "bids/derivatives/seg/sub-03/anat/sub-03_label-lesion_mask.npz"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"no volume")
    items = load_datalist(tmp_path / "bids", "all")
    assert ["lesion" in item for item in items] == [False, True, True]
    assert "cannot be read" in items[2]["problem"]

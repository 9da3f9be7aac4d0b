import csv
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from aeflow_monai.data.datalist import choose_abnormal, find_images, load_datalist, require_labels, split_normals

CLASS_FOLDERS = (
    "train/NORMAL/n1.png",
    "train/NORMAL/n2.png",
    "train/LESION/l1.png",
    "test/NORMAL/n3.png",
    "test/LESION/l2.png",
)


def write_image(path: Path, value: int = 7) -> Path:
    """A small image or volume whose every voxel holds the value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(np.full((2, 3, 2), value, np.uint8), np.eye(4)), path)
    elif path.suffix in (".png", ".jpg"):
        Image.fromarray(np.full((3, 2), value, np.uint8)).save(path)
    else:
        path.touch()
    return path


def write_images(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        write_image(folder / name)
    return folder


def write_csv(folder: Path, rows: Sequence[Sequence[str]], name: str = "manifest.csv") -> Path:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder / name


def write_json(folder: Path, content: Any, name: str = "dataset.json") -> Path:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder / name


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder with a manifest of four images and one mask."""
    write_images(tmp_path, ["x/a.nii.gz", "x/b.nii.gz", "y/c.nii.gz", "y/d.nii.gz", "masks/d.nii.gz"])
    rows = [
        ("path", "split", "class", "abnormal", "mask", "case"),
        ("y/d.nii.gz", "test", "tumour", "1", "masks/d.nii.gz", "patient 4"),
        ("x/b.nii.gz", "train", "normal", "0", "", "patient 1"),
        ("y/c.nii.gz", "test", "normal", "0", "", ""),
        ("x/a.nii.gz", "train", "normal", "0", "", "patient 1"),
    ]
    write_csv(tmp_path, rows)
    return tmp_path


# A table


def test_table(table: Path) -> None:
    test = load_datalist(table, "test")
    assert test == [
        {"image": str(table / "y/c.nii.gz"), "case": "c", "patient": "c", "label": 0},
        {
            "image": str(table / "y/d.nii.gz"),
            "case": "patient 4",
            "patient": "patient 4",
            "label": 1,
            "mask": str(table / "masks/d.nii.gz"),
        },
    ]
    assert [list(item) for item in test] == [
        ["image", "case", "patient", "label"],
        ["image", "case", "patient", "label", "mask"],
    ]
    train = load_datalist(table, "train")
    assert [(Path(item["image"]).name, item["case"]) for item in train] == [
        ("a.nii.gz", "patient 1"),
        ("b.nii.gz", "patient 1"),
    ]
    assert load_datalist(table / "manifest.csv", "all") == train + test == load_datalist(table, "all")


def test_table_of_any_name_with_byte_order_mark_and_spaces(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    text = "path, split, abnormal\na.png, train, 0\n\nb.png, val, 1\n"
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8-sig")
    assert [item["case"] for item in load_datalist(tmp_path / "mine.csv", "train")] == ["a"]
    assert [item["case"] for item in load_datalist(str(tmp_path / "mine.csv"), "all")] == ["a", "b"]


def test_relative_folder_gives_absolute_paths(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(table.parent)
    assert load_datalist(table.name, "all") == load_datalist(table, "all")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("path", "split", "class")], r"lacks the column abnormal; found: path, split, class\."),
        ([("path;split;abnormal",)], r"lacks the column path, split, abnormal; found: path;split;abnormal\."),
        ([], r"lacks the column path, split, abnormal; found: none\."),
        (
            [("path", "split", "abnormal"), ("a.png", "train", "0"), ("b.png", "test", "yes")],
            r"row 3: abnormal .*'yes'",
        ),
        ([("path", "split", "abnormal"), ("a.png", "train", "")], r"row 2: abnormal has to be 0 .* or 1 .*, got ''"),
        (
            [("path", "split", "abnormal"), ("a.png", "dev", "0")],
            r"row 2: split has to be one of train, val.*got 'dev'",
        ),
        ([("path", "split", "abnormal"), ("", "train", "0")], r"row 2: path is empty"),
        ([("path", "split", "abnormal"), ("b.png", "test", "0")], r"no image for the section 'train'; found 1 in test"),
        ([("path", "split", "abnormal")], r"no image for the section 'train'; found none at all\. Its column split"),
        (
            [("path", "split", "abnormal"), ("a.png", "train", "1")],
            r"holds no normal image among 1, .* normal images have 0 in its column abnormal",
        ),
        (
            [("path", "split", "abnormal"), ("a.png", "train", "0"), ("a.png", "test", "0")],
            r"lists 1 images more than once: .*a\.png\. Keep each in one place",
        ),
    ],
)
def test_table_errors(tmp_path: Path, rows: Sequence[Sequence[str]], message: str) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    write_csv(tmp_path, rows)
    with pytest.raises(ValueError, match=f"manifest.csv.*{message}"):
        load_datalist(tmp_path, "train")


def test_table_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes("path,split,abnormal\nschädel.png,train,0\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"manifest.csv is not UTF-8 text: .*Save it as UTF-8"):
        load_datalist(tmp_path, "train")


def test_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    rows = [(f"{i}.png", "train", "0", "") for i in range(8)] + [("9.png", "train", "1", "mask9.png")]
    write_csv(tmp_path, [("path", "split", "abnormal", "mask"), *rows])
    write_images(tmp_path, ["0.png", "9.png"])
    with pytest.raises(FileNotFoundError) as caught:
        load_datalist(tmp_path, "train")
    message = str(caught.value)
    assert message.startswith(f"8 of the 10 files listed in {tmp_path / 'manifest.csv'} are missing: ")
    assert f"{tmp_path / '1.png'}, {tmp_path / '2.png'}" in message
    assert "and 3 more. Its paths are relative to" in message


def test_only_files_of_the_section_have_to_be_there(table: Path) -> None:
    (table / "masks/d.nii.gz").unlink()
    assert len(load_datalist(table, "train")) == 2
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 files .*masks/d\.nii\.gz"):
        load_datalist(table, "test")


# A JSON


def test_json_labels(tmp_path: Path) -> None:
    write_images(tmp_path, [*(f"{name}.nii.gz" for name in "abcdefgh"), "full.nii.gz"])
    write_image(tmp_path / "empty.nii.gz", 0)
    content = {
        "name": "any",
        "training": [
            {"image": "a.nii.gz"},
            {"image": "b.nii.gz", "label": 1, "fold": 0},
            {"image": "c.nii.gz", "label": "full.nii.gz"},
            {"image": "d.nii.gz", "label": "empty.nii.gz", "case": 17},
        ],
        "validation": [{"image": "e.nii.gz"}],
        "test": [
            "f.nii.gz",
            {"image": "g.nii.gz", "abnormal": 0, "mask": "full.nii.gz"},
            {"image": "h.nii.gz", "mask": "empty.nii.gz", "label": None},
        ],
    }
    write_json(tmp_path, content)
    empty, full = str(tmp_path / "empty.nii.gz"), str(tmp_path / "full.nii.gz")
    train = load_datalist(tmp_path, "train")
    assert [item.get("label") for item in train] == [0, 1, 1, 0]
    assert [item.get("mask") for item in train] == [None, None, full, empty]
    assert [item["case"] for item in train] == ["a", "b", "c", "17"]
    test = load_datalist(tmp_path / "dataset.json", "test")
    assert test == [
        {"image": str(tmp_path / "f.nii.gz"), "case": "f", "patient": "f"},
        {"image": str(tmp_path / "g.nii.gz"), "case": "g", "patient": "g", "label": 0, "mask": full},
        {"image": str(tmp_path / "h.nii.gz"), "case": "h", "patient": "h", "label": 0, "mask": empty},
    ]
    everything = load_datalist(tmp_path, "all")
    assert len(everything) == 8
    assert {"image": str(tmp_path / "e.nii.gz"), "case": "e", "patient": "e"} in everything


def test_json_case_that_is_also_a_folder_stays_a_name(tmp_path: Path) -> None:
    write_images(tmp_path, ["p1/t1.nii"])
    write_json(tmp_path, {"training": [{"image": "p1/t1.nii", "case": "p1"}]}, "datalist.json")
    assert load_datalist(tmp_path, "train") == [
        {"image": str(tmp_path / "p1/t1.nii"), "case": "p1", "patient": "p1", "label": 0}
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["a.png"]}, r'has no list "training", .*its keys are \[\'train\'\]'),
        ([{"image": "a.png"}], r'has no list "training"'),
        ({"test": ["a.png"]}, r"no image for the section 'train'; found 1 in test\. Its key \"training\""),
        ({"training": []}, r"no image for the section 'train'; found none at all"),
        ({"training": [{"path": "a.png"}]}, r"training\[0\] has to be a path, .*\"image\"; got \{'path': 'a.png'\}"),
        ({"training": ["b.png", {"image": ["a.png", 1]}]}, r"training\[1\] has to be a path"),
        ({"training": [{"image": "a.png", "label": 2}]}, r"training\[0\]: label has to be 0 .* or 1 .*, got 2"),
        ({"training": [{"image": "a.png", "abnormal": "yes"}]}, r"training\[0\]: abnormal has to be .* got 'yes'"),
        (
            {"training": [{"image": "a.png", "abnormal": 1, "label": 0}]},
            r"training\[0\]: label and abnormal contradict",
        ),
        ({"training": [{"image": "a.png", "label": 1}]}, r"holds no normal image among 1, .*\"label\": 0"),
    ],
)
def test_json_errors(tmp_path: Path, content: Any, message: str) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    write_json(tmp_path, content)
    with pytest.raises(ValueError, match=f"dataset.json.*{message}"):
        load_datalist(tmp_path, "train")


def test_json_with_a_typing_error(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"training": [')
    with pytest.raises(ValueError, match=r"dataset.json is not valid JSON: .*line 1 column 15"):
        load_datalist(tmp_path, "train")


def test_json_segmentation_that_is_missing(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    write_json(tmp_path, {"training": [{"image": "a.png", "label": "labels/a.png"}]})
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 files .*labels/a\.png"):
        load_datalist(tmp_path, "train")


# A folder per class


def test_class_folders_with_splits(tmp_path: Path) -> None:
    write_images(
        tmp_path,
        [*CLASS_FOLDERS, "val/NORMAL/v.png", "test/.old/x.png", "test_masks/LESION/l2.png", "test/LESION/notes.txt"],
    )
    assert load_datalist(tmp_path, "test") == [
        {
            "image": str(tmp_path / "test/LESION/l2.png"),
            "case": "l2",
            "patient": "l2",
            "label": 1,
            "mask": str(tmp_path / "test_masks/LESION/l2.png"),
        },
        {"image": str(tmp_path / "test/NORMAL/n3.png"), "case": "n3", "patient": "n3", "label": 0},
    ]
    assert [(item["case"], item["label"]) for item in load_datalist(tmp_path, "train")] == [
        ("l1", 1),
        ("n1", 0),
        ("n2", 0),
    ]
    assert len(load_datalist(tmp_path, "all")) == 6


def test_class_folders_without_splits(tmp_path: Path) -> None:
    write_images(tmp_path, ["Normal/a.jpg", "tumour/b.jpg", "masks/tumour/b.png"])
    everything = load_datalist(tmp_path, "all")
    assert [(item["case"], item["label"]) for item in everything] == [("a", 0), ("b", 1)]
    assert everything[1]["mask"] == str(tmp_path / "masks/tumour/b.png")
    assert load_datalist(tmp_path, "train") == everything
    with pytest.raises(ValueError, match=r"section 'test'; found 2 in class folders without a split\. .*test/<class>"):
        load_datalist(tmp_path, "test")


@pytest.mark.parametrize("normal_classes", ["good", ["fine", "GOOD"]])
def test_normal_classes_are_matched_in_any_case(tmp_path: Path, normal_classes: str | list[str]) -> None:
    write_images(tmp_path, ["train/Good/a.png", "train/bent/b.png"])
    items = load_datalist(tmp_path, "train", normal_classes=normal_classes)
    assert {item["case"]: item["label"] for item in items} == {"a": 0, "b": 1}


def test_accepted_extensions(tmp_path: Path) -> None:
    extensions = ["nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd", "png", "jpg", "jpeg", "bmp", "tif", "tiff"]
    extensions += ["NII.GZ", "PNG", "Jpeg"]
    names = [f"s{i}.v2.{extension}" for i, extension in enumerate(extensions)]
    refused = ["r.raw", "r.txt", "r.npy", ".hidden.png", "._s1.png"]
    for name in (*names, *refused):
        (tmp_path / "NORMAL").mkdir(exist_ok=True)
        (tmp_path / "NORMAL" / name).touch()
    cases = {item["case"] for item in load_datalist(tmp_path, "all")}
    assert cases == {f"s{i}.v2" for i in range(len(extensions))}
    assert {item["case"] for item in find_images(tmp_path)} == cases


def test_results_do_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    names = [
        f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in ("NORMAL", "LESION") for i in range(6)
    ]
    found = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        write_images(folder, random.Random(seed).sample(names, len(names)))
        listed = [load_datalist(folder, "train"), load_datalist(folder, "test"), find_images(folder)]
        found.append([[{**x, "image": os.path.relpath(x["image"], folder)} for x in items] for items in listed])
        shuffled = random.Random(seed).sample(names, len(names))
        rows = [(name, name.split("/")[0], str(int("LESION" in name))) for name in shuffled]
        write_csv(folder, [("path", "split", "abnormal"), *rows])
        assert load_datalist(folder, "train") == listed[0]
    assert found[0] == found[1] == found[2]


def test_repeated_names_get_their_folder_in_every_section(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/NORMAL/1.png", "test/NORMAL/1.png", "test/LESION/2.png", "test/LESION/3.png"])
    test = [item["case"] for item in load_datalist(tmp_path, "test")]
    assert test == ["2", "3", "test_NORMAL_1"]
    assert [item["case"] for item in load_datalist(tmp_path, "all")] == [*test, "train_NORMAL_1"]


def test_default_name_gives_way_to_a_given_one(tmp_path: Path) -> None:
    write_images(tmp_path, ["x/a.png", "y/b.png"])
    rows = [("path", "split", "abnormal", "case"), ("x/a.png", "train", "0", ""), ("y/b.png", "train", "0", "a")]
    write_csv(tmp_path, rows)
    assert [item["case"] for item in load_datalist(tmp_path, "train")] == ["x_a", "a"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"No image in the class folders of .*\.nii, \.nii\.gz.*class folders found: none\."),
        (["scan.png"], r"No image in the class folders of .*--dataset_dir"),
        (["train/NORMAL/readme.txt"], r"No image in the class folders .*class folders found: NORMAL\."),
        (["train/bent/a.png", "test/ok/b.png"], r"is named NORMAL; found: bent, ok\. .*--normal_classes"),
        (["train/LESION/a.png", "test/NORMAL/b.png"], r"holds no normal image among 1, .*--normal_classes"),
        (["test/NORMAL/b.png"], r"no image for the section 'train'; found 1 in test\. Expected train/<class>"),
        (["NORMAL/p1/a.png"], r"NORMAL has 1 images in folders of its own: .*a\.png.*manifest\.csv"),
        (
            ["train/NORMAL/a.png", "test/LESION/b.png", "test_masks/LESION/b_mask.png"],
            r"1 masks below .* have no image: .*b_mask\.png\. Name a mask as its image",
        ),
    ],
)
def test_class_folder_errors(tmp_path: Path, names: Sequence[str], message: str) -> None:
    write_images(tmp_path, names)
    with pytest.raises(ValueError, match=message):
        load_datalist(tmp_path, "train")


# What all layouts share


def test_unknown_section(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"section has to be one of train, test, all; got 'validate'"):
        load_datalist(tmp_path, "validate")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nowhere\. .*--dataset_dir"):
        load_datalist(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*list\.csv\. .*--dataset_dir"):
        find_images(tmp_path / "list.csv")


def test_file_that_is_no_list(tmp_path: Path) -> None:
    for name in ("scan.nii", "notes.txt"):
        file = write_image(tmp_path / name)
        with pytest.raises(ValueError, match=rf"Expected a folder or a datalist \(\.csv, \.json\).*{name}"):
            load_datalist(file, "train")
    with pytest.raises(ValueError, match=r"for inference also an image \(\.nii, .*notes\.txt"):
        find_images(tmp_path / "notes.txt")


# Images without labels


def test_find_images_below_a_folder(tmp_path: Path) -> None:
    names = ["z.png", "p1/t1.nii.gz", "p2/t1.nii.gz", "p2/deep/t1.nii", "p2/flair.nii.gz", ".cache/t2.nii", "p1/t.raw"]
    write_images(tmp_path, names)
    assert find_images(tmp_path) == [
        {"image": str(tmp_path / "p1/t1.nii.gz"), "case": "p1_t1", "patient": "p1_t1"},
        {"image": str(tmp_path / "p2/deep/t1.nii"), "case": "p2_deep_t1", "patient": "p2_deep_t1"},
        {"image": str(tmp_path / "p2/flair.nii.gz"), "case": "flair", "patient": "flair"},
        {"image": str(tmp_path / "p2/t1.nii.gz"), "case": "p2_t1", "patient": "p2_t1"},
        {"image": str(tmp_path / "z.png"), "case": "z", "patient": "z"},
    ]


@pytest.mark.parametrize(
    ("names", "cases"),
    [
        (["a.png", "x/a.png"], ["a", "x_a"]),
        (["a.png", "a.jpg"], ["a_jpg", "a_png"]),
        (["x/a.png", "y/x_a.png", "z/a.png"], ["x_a_png", "y_x_a_png", "z_a"]),
    ],
)
def test_find_images_never_repeats_a_case(tmp_path: Path, names: Sequence[str], cases: Sequence[str]) -> None:
    write_images(tmp_path, names)
    assert [item["case"] for item in find_images(tmp_path)] == cases


def test_find_images_that_cannot_be_told_apart(tmp_path: Path) -> None:
    write_images(tmp_path, ["x/y/a.png", "x_y/a.png"])
    with pytest.raises(ValueError, match=r"2 images have no case name of their own: .*Rename them"):
        find_images(tmp_path)


def test_find_images_uses_the_test_section_of_a_list(table: Path) -> None:
    assert find_images(table) == find_images(table / "manifest.csv") == load_datalist(table, "test")


def test_find_images_takes_a_list_without_training(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.nii.gz", "b.nii.gz"])
    write_json(tmp_path, {"test": ["b.nii.gz", "a.nii.gz"]})
    assert [item["case"] for item in find_images(tmp_path)] == ["a", "b"]


def test_find_images_takes_one_file(tmp_path: Path) -> None:
    file = write_image(tmp_path / "sub-01.T1w.nii.gz")
    write_json(tmp_path, {"test": []})
    assert find_images(file) == [{"image": str(file), "case": "sub-01.T1w", "patient": "sub-01.T1w"}]


def test_find_images_without_images(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"No image in .* or below\. Expected \.nii, .*\.tiff\. .*--dataset_dir"):
        find_images(tmp_path)


# The split


def patients(n: int, images: int = 3) -> list[dict[str, Any]]:
    return [
        {"image": f"/{case}_{i}.png", "case": f"p{case:03d}", "label": 0} for case in range(n) for i in range(images)
    ]


@pytest.mark.parametrize(
    ("n", "fraction", "expected"),
    [(2, 0.01, 1), (2, 0.99, 1), (10, 0.1, 1), (10, 0.3, 3), (10, 0.99, 9), (200, 0.1, 20)],
)
def test_split_is_by_case(n: int, fraction: float, expected: int) -> None:
    items = patients(n)
    fit, calibration = split_normals(items, fraction)
    fit_cases, calibration_cases = ({item["case"] for item in part} for part in (fit, calibration))
    assert len(calibration_cases) == expected
    assert len(fit_cases) == n - expected
    assert not fit_cases & calibration_cases
    assert sorted(fit + calibration, key=lambda x: x["image"]) == sorted(items, key=lambda x: x["image"])


def test_split_depends_on_the_seed_and_not_on_the_order() -> None:
    items = patients(30)
    shuffled = random.Random(1).sample(items, len(items))
    assert split_normals(shuffled, 0.2, seed=3) == split_normals(items, 0.2, seed=3)
    assert split_normals(items, 0.2, seed=4) != split_normals(items, 0.2, seed=3)


def test_split_keeps_only_normals() -> None:
    abnormal = {"image": "/a.png", "case": "a", "label": 1}
    unknown = {"image": "/u.png", "case": "u"}
    fit, calibration = split_normals([abnormal, unknown, *patients(4)], 0.5)
    assert {item["case"] for item in fit + calibration} == {"p000", "p001", "p002", "p003"}


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_a_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"calibration_fraction has to lie between 0 and 1, ends excluded; got"):
        split_normals(patients(4), fraction)


def test_split_needs_two_normal_cases() -> None:
    with pytest.raises(ValueError, match=r"a datalist without normals: none of 1 items .*--normal_classes"):
        split_normals([{"image": "/a.png", "case": "a", "label": 1}])
    with pytest.raises(ValueError, match=r"at least 2 normal cases, .*got \['p000'\] \(3 images\)\. Add normal images"):
        split_normals(patients(1))


# Real data


def test_chest_xray() -> None:
    root = os.environ.get("AEFLOW_DATA")
    if not root or not Path(root, "chest_xray").is_dir():
        pytest.skip("needs the folder chest_xray in the folder that the environment variable AEFLOW_DATA names")
    for section, normal, abnormal in (("train", 1340, 3850), ("test", 231, 387)):
        items = load_datalist(Path(root, "chest_xray"), section)
        labels = [item["label"] for item in items]
        assert (labels.count(0), labels.count(1)) == (normal, abnormal)
        assert len({item["case"] for item in items}) == len(items)
    assert find_images(Path(root, "chest_xray")) == items


def test_evaluation_needs_both_labels_or_masks() -> None:
    labelled = [{"image": "a", "label": 0}, {"image": "b", "label": 1}]
    assert require_labels(labelled) is labelled
    problem = {"image": "p", "case": "p", "problem": "no mask"}
    assert len(require_labels([*labelled, problem])) == 3
    masked = [{"image": "c", "label": 1, "mask": "m"}, {"image": "d", "label": 1}, problem]
    assert require_labels(masked) is masked


@pytest.mark.parametrize(
    ("items", "found"),
    [
        ([{"image": "a", "label": 0}, {"image": "b", "label": 1}, {"image": "c"}], "1 of 3 test images have no label"),
        ([{"image": "b", "label": 1}], r"labels \{1\} and no masks"),
        (
            [{"image": "b", "label": 1}, {"image": "p", "mask": "m", "problem": "no image"}],
            r"labels \{1\} and no masks",
        ),
        ([{"image": "c", "label": 1, "mask": "m"}, {"image": "d"}], "1 of 2 test images have no label"),
        ([{"image": "a", "label": 0, "mask": "m"}], r"labels \{0\}\."),
    ],
)
def test_what_cannot_be_evaluated_is_refused(items: list[dict[str, Any]], found: str) -> None:
    with pytest.raises(ValueError, match=rf"got {found}.*use inference\.yaml"):
        require_labels(items)


def test_outputs_are_not_taken_for_images(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "maps/a_anomaly_map.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [item["case"] for item in find_images(tmp_path, exclude=tmp_path / "maps")] == ["a"]


def labelled_patients() -> list[dict[str, Any]]:
    abnormal = [
        {"image": f"/abnormal/{p}_{i}.png", "case": f"{p}_{i}", "patient": f"p{p:03d}", "label": 1}
        for p in range(6)
        for i in range(2)
    ]
    return [*patients(6), *abnormal]


def test_labelled_abnormal_images_are_never_calibrated_on_nor_their_patients() -> None:
    items = labelled_patients()
    fit, calibration = split_normals(items, 0.5)
    assert {item["label"] for item in fit + calibration} == {0}
    chosen = choose_abnormal(items, None, calibration)
    assert {item["label"] for item in chosen} == {1}
    assert {item["patient"] for item in chosen} == {item["case"] for item in fit}
    with pytest.raises(ValueError, match=r"lists 6 usable .*\(6 more are of patients held out for calibration\)"):
        choose_abnormal(items, 7, calibration)


def test_a_larger_choice_of_abnormal_images_holds_a_smaller_one() -> None:
    items = labelled_patients()
    chosen = [choose_abnormal(items, count, seed=2) for count in (0, 3, 12)]
    assert chosen[0] == []
    assert chosen[1] == chosen[2][:3]
    assert choose_abnormal(items[::-1], 3, seed=2) == chosen[1]
    assert choose_abnormal(items, 12, seed=3) != chosen[2]
    assert choose_abnormal(items, None, seed=2) == chosen[2]


@pytest.mark.parametrize("count", [-1, 13])
def test_abnormal_images_that_are_not_there_cannot_be_chosen(count: int) -> None:
    with pytest.raises(ValueError, match=rf"labelled_abnormal is {count}.* lists 12 usable.* 0 to 12, or null"):
        choose_abnormal(labelled_patients(), count)

from collections.abc import Sequence
from pathlib import Path

import pytest
from inputs import write_images

from aeflow_monai.data.datalist import load_datalist

CLASS_FOLDERS = (
    "train/NORMAL/n1.png",
    "train/NORMAL/n2.png",
    "train/LESION/l1.png",
    "test/NORMAL/n3.png",
    "test/LESION/l2.png",
)


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
            "lesion": str(tmp_path / "test_masks/LESION/l2.png"),
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
    assert everything[1]["lesion"] == str(tmp_path / "masks/tumour/b.png")
    assert load_datalist(tmp_path, "train") == everything
    with pytest.raises(ValueError, match=r"section 'test'; found 2 in class folders without a split\. .*test/<class>"):
        load_datalist(tmp_path, "test")


@pytest.mark.parametrize("normal_classes", ["good", ["fine", "GOOD"]])
def test_normal_classes_are_matched_in_any_case(tmp_path: Path, normal_classes: str | list[str]) -> None:
    write_images(tmp_path, ["train/Good/a.png", "train/bent/b.png"])
    items = load_datalist(tmp_path, "train", normal_classes=normal_classes)
    assert {item["case"]: item["label"] for item in items} == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"No image in the class folders of .*\.nii, \.nii\.gz.*class folders found: none\."),
        (["scan.png", "SICK/scan.png"], r"None of the class folders .* is named NORMAL"),
        (["train/NORMAL/readme.txt"], r"No image in the class folders .*class folders found: NORMAL\."),
        (["train/bent/a.png", "test/ok/b.png"], r"is named NORMAL; found: bent, ok\. .*--normal_classes"),
        (["train/LESION/a.png", "test/NORMAL/b.png"], r"holds no normal image among 1, .*--normal_classes"),
        (["test/NORMAL/b.png"], r"no image for the section 'train'; found 1 in test\. Expected train/<class>"),
        (["NORMAL/p1/a.png"], r"NORMAL has 1 images in folders of its own: .*a\.png.*manifest\.csv"),
        (
            ["train/NORMAL/a.png", "test/LESION/b.png", "test_masks/LESION/c.png"],
            r"1 masks below .* have no image: .*c\.png\. Name a mask as its image",
        ),
    ],
)
def test_class_folder_errors(tmp_path: Path, names: Sequence[str], message: str) -> None:
    write_images(tmp_path, names)
    with pytest.raises(ValueError, match=message):
        load_datalist(tmp_path, "train")


def test_masks_named_after_their_images(tmp_path: Path) -> None:
    write_images(tmp_path, ["NORMAL/n.png", "benign/a (1).png", "benign/a (1)_mask.png", "bad/b.png", "bad/c.png"])
    write_images(tmp_path, ["masks/bad/b_mask.png", "bad/c_mask.png", "masks/bad/c.png"])
    items = {item["case"]: item for item in load_datalist(tmp_path, "all")}
    assert set(items) == {"n", "a (1)", "b", "c"}
    assert items["a (1)"]["lesion"].endswith("benign/a (1)_mask.png")
    assert items["b"]["lesion"].endswith("masks/bad/b_mask.png")
    assert "c.png has 2 masks: " in items["c"]["problem"]
    assert {case: item["label"] for case, item in items.items()} == {"n": 0, "a (1)": 1, "b": 1, "c": 1}


def test_mvtec(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/good/1.png", "test/good/1.png", "test/bent/1.png", "ground_truth/bent/1_mask.png"])
    items = load_datalist(tmp_path, "test", normal_classes=["good"])
    assert [item.get("lesion") for item in items] == [str(tmp_path / "ground_truth/bent/1_mask.png"), None]


def test_abnormal_images_that_nothing_uses_are_noted(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{name}.png" for n in range(10) for name in (f"NORMAL/{n}", f"SICK/{n}s")])
    note = load_datalist(tmp_path, "train").notes["abnormal"]
    assert note.startswith("Not used: 10 abnormal images among those of")
    assert "Nothing is left to test on. Hold patients out with --test_fraction 0.2" in note
    items = load_datalist(tmp_path, "train", test_fraction=0.3)
    n_abnormal = sum(item["label"] for item in items)
    assert items.notes["abnormal"].startswith(f"Not used: {n_abnormal} abnormal images among")
    assert items.notes["abnormal"].endswith("They are in no test either. A manifest.csv can put them there.")
    assert not load_datalist(tmp_path, "test", test_fraction=0.3).notes
    write_images(tmp_path, ["train/NORMAL/a.png", "train/SICK/b.png"])
    assert not load_datalist(tmp_path, "train").notes


def test_a_normal_class_that_no_folder_has_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, ["test/NORMAL/a.png", "test/HEALTHY/b.png", "test/SICK/c.png"])
    load_datalist(tmp_path, "test", normal_classes=["NORMAL", "HEALTY"])
    assert (
        "There is no image in a class folder HEALTY, which was called normal. Normal are the class folders NORMAL, "
        in caplog.text
    )
    assert "abnormal HEALTHY, SICK." in caplog.text
    caplog.clear()
    load_datalist(tmp_path, "test", normal_classes=["normal", "healthy"])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/NORMAL/a.png", "Train/NORMAL/b.png", "test/SICK/c.png"])
    with pytest.raises(ValueError, match=r"Expected one folder of each split in .*; got Train, test, train\. Move"):
        load_datalist(tmp_path, "train")


def test_a_normal_class_may_end_in_a_blank(tmp_path: Path) -> None:
    write_images(tmp_path, ["NORMAL /a.png", "SICK/b.png"])
    assert [item["label"] for item in load_datalist(tmp_path, "all", layout="classes")] == [0, 1]


def test_masks_in_a_format_that_is_not_read_mark_their_images(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/NORMAL/a.png", "test/SICK/c.png"])
    (tmp_path / "test_masks/SICK").mkdir(parents=True)
    (tmp_path / "test_masks/SICK/c.mat").write_bytes(b"no picture")
    assert load_datalist(tmp_path, "test")[0]["lesion"] == str(tmp_path / "test_masks/SICK/c.mat")

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from inputs import write_csv, write_image, write_images, write_json

from aeflow_monai.archive import Shard, studies_in
from aeflow_monai.data.datalist import find_images, load_datalist
from aeflow_monai.data.datalist.modalities import in_order

# --- a table ----------------------------------------------------------------------------------------------------------


def test_modalities_of_a_table_are_ordered_by_the_names_of_files(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{name}_{modality}.nii" for name in "ab" for modality in ("t1", "flair")])
    rows = [("path", "split", "abnormal"), ("a_flair.nii;a_t1.nii", "test", "0"), ("b_t1.nii", "test", "1")]
    write_csv(tmp_path, rows)
    for find in (load_datalist, find_images):
        where = (tmp_path / "manifest.csv", "test") if find is load_datalist else (tmp_path / "manifest.csv",)
        whole, lacking = find(*where, modalities=["t1", "flair"])  # type: ignore[operator]
        assert whole["image"] == [str(tmp_path / "a_t1.nii"), str(tmp_path / "a_flair.nii")]
        assert lacking["problem"].endswith("got b_t1.nii. Name all of them in one line or item of the list.")


@pytest.mark.parametrize(
    ("names", "modalities", "expected"),
    [
        (["c-t1n.nii", "c-t2f.nii"], ["flair", "t1"], ["c-t2f.nii", "c-t1n.nii"]),
        (["x_t1.nii", "x_pre_t1.nii"], ["pre_t1", "t1"], ["x_pre_t1.nii", "x_t1.nii"]),
        (["x_t1ce.nii.gz", "x_t1.nii.gz"], ["t1", "t1ce"], ["x_t1.nii.gz", "x_t1ce.nii.gz"]),
        (["p9.nii"], ["flair"], ["p9.nii"]),
    ],
)
def test_files_in_the_order_of_modalities(names: list[str], modalities: list[str], expected: list[str]) -> None:
    assert [path.name for path in in_order([*map(Path, names)], modalities)] == expected


@pytest.mark.parametrize(
    "names", [["c_0000.nii", "c_0001.nii"], ["p_T1_brain.nii", "p_flair.nii"], ["a_t1.nii", "b_t1.nii"]]
)
def test_files_whose_names_tell_no_modality(names: list[str]) -> None:
    with pytest.raises(ValueError, match="their names do not tell: they have to end in _t1 and so on"):
        in_order([*map(Path, names)], ["t1", "flair"])


def test_a_patient_spelt_otherwise_is_the_same(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.nii", "b.nii"])
    rows = [
        ("path", "split", "abnormal", "patient"),
        ("a.nii", "train", "0", "Müller 1"),
        ("b.nii", "test", "1", "MÜLLER 1"),
    ]
    write_csv(tmp_path, rows)
    with pytest.raises(ValueError, match=r"has 1 patient both in train and in test: Müller 1\."):
        load_datalist(tmp_path, "train")


def test_a_table_of_paths_alone_is_scored_and_trains_nothing(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.nii", "b.nii"])
    write_csv(tmp_path, [("path",), ("a.nii",), ("b.nii",)], "list.csv")
    assert [item["case"] for item in find_images(tmp_path / "list.csv")] == ["a", "b"]
    assert not any("label" in item for item in find_images(tmp_path / "list.csv"))
    with pytest.raises(ValueError, match="lacks the column split, abnormal"):
        load_datalist(tmp_path / "list.csv", "train")


def test_table(table: Path) -> None:
    test = load_datalist(table, "test")
    assert test == [
        {"image": str(table / "y/c.nii.gz"), "case": "c", "patient": "c", "label": 0},
        {
            "image": str(table / "y/d.nii.gz"),
            "case": "patient 4",
            "patient": "patient 4",
            "label": 1,
            "lesion": str(table / "masks/d.nii.gz"),
        },
    ]
    assert [list(item) for item in test] == [
        ["image", "case", "patient", "label"],
        ["image", "case", "patient", "label", "lesion"],
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
        (
            [("path", "split", "abnormal"), ("a.png", "train", "0"), ("./../link/a.png", "test", "0")],
            r"lists 1 images more than once: .*link/a\.png, which is .*a\.png\.",
        ),
        (
            [("path", "split", "abnormal", "mask"), ("a.png", "train", "0", ""), ("b.png", "test", "1", "./b.png")],
            r"the mask of .*b\.png, .*b\.png, is the image itself",
        ),
        (
            [("path", "split", "abnormal", "case"), ("a.png", "train", "0", "x"), ("b.png", "test", "0", "x")],
            r"has 1 case both in train and in test: x\.",
        ),
        ([("path", "split", "abnormal", "path")], r"has the column path more than once"),
        ([("path", "split", "abnormal"), ("a.png", "train", "0", "m.png")], r"row 2 has 4 cells, but there are 3 col"),
    ],
)
def test_table_errors(tmp_path: Path, rows: Sequence[Sequence[str]], message: str) -> None:
    root = write_images(tmp_path / "root", ["a.png", "b.png"])
    (tmp_path / "link").symlink_to(root)
    write_csv(root, rows)
    with pytest.raises(ValueError, match=f"manifest.csv.*{message}"):
        load_datalist(root, "train")


def test_columns_that_are_not_used_are_named(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_datalist(table, "test")
    assert "manifest.csv: the columns class are not used; known are path, split, abnormal, mask, case" in caplog.text


def test_table_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes("path,split,abnormal\nschädel.png,train,0\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"manifest.csv is not UTF-8 text: .*Save it as UTF-8"):
        load_datalist(tmp_path, "train")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["manifest.csv", "dataset.json"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    write_images(tmp_path, ["schädel.png", "影像.png"])
    text = "path,split,abnormal\r\nschädel.png,train,0\r\n影像.png,train,0\r\n"
    if name == "dataset.json":
        text = json.dumps({"training": ["schädel.png", "影像.png"]}, ensure_ascii=False)
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert {item["case"] for item in load_datalist(tmp_path, "train")} == {"schädel", "影像"}
    (tmp_path / name).write_bytes(text.encode("utf-16-le"))
    with pytest.raises(ValueError, match=rf"Expected text in .*{name}, in UTF-8, or in UTF-16 with a byte order mark"):
        load_datalist(tmp_path, "train")


# --- a JSON -----------------------------------------------------------------------------------------------------------


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
    assert [item.get("lesion") for item in train] == [None, None, full, empty]
    assert [item["case"] for item in train] == ["a", "b", "c", "17"]
    test = load_datalist(tmp_path / "dataset.json", "test")
    assert test == [
        {"image": str(tmp_path / "f.nii.gz"), "case": "f", "patient": "f"},
        {"image": str(tmp_path / "g.nii.gz"), "case": "g", "patient": "g", "label": 0, "lesion": full},
        {"image": str(tmp_path / "h.nii.gz"), "case": "h", "patient": "h", "label": 0, "lesion": empty},
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
        (
            {"training": ["a.png"], "trainning": ["b.png"]},
            r"has unknown keys: trainning\. Lists of images are training",
        ),
        ({"training": ["a.png"], "test": "b.png"}, r"test has to be a list of images"),
        ({"training": [{"image": "a.png", "lable": 1}]}, r"training\[0\] has unknown keys: lable\. Known are image"),
        ({"training": [{"image": "a.png", "mask": ["b.png"]}]}, r"training\[0\]: mask has to be text"),
        ({"training": [{"image": ""}]}, r"training\[0\] has to be a path"),
        ({"training": [{"image": "a.png", "sha256": "00"}]}, r"sha256 has to be a dictionary"),
        (
            {"training": ["a.png", {"image": "b.png", "mask": "b.png"}]},
            r"the mask of .*b\.png, .*b\.png, is the image itself",
        ),
        ({"training": ["a.png"], "test": ["./a.png"]}, r"lists 1 images more than once"),
        (
            {"training": [{"image": "a.png", "case": "x"}], "test": [{"image": "b.png", "case": "x"}]},
            r"has 1 case both in train and in test: x\.",
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


def test_json_key_that_stands_twice(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"training": ["a.png"], "training": ["b.png"]}')
    with pytest.raises(ValueError, match=r"dataset.json cannot be read: the key training stands twice"):
        load_datalist(tmp_path, "train")


def test_keys_of_other_tools_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    about = {"name": "x", "modality": {"0": "MRI"}, "labels": {"0": "bg"}, "numTraining": 1, "tensorImageSize": "3D"}
    about |= {"description": "", "reference": "", "licence": "", "release": "1.0", "channel_names": {"0": "T1"}}
    write_json(tmp_path, {**about, "training": [{"image": "a.png", "fold": 0}], "testing": ["b.png"]})
    assert [item["case"] for item in load_datalist(tmp_path, "test")] == ["b"]
    assert "fold of its items is not used" in caplog.text


def test_json_segmentation_that_is_missing(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    write_json(tmp_path, {"training": [{"image": "a.png", "label": "labels/a.png"}]})
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 files .*labels/a\.png"):
        load_datalist(tmp_path, "train")


def test_a_first_line_without_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,split,abnormal" + "9" * 200000 + "\n")
    with pytest.raises(ValueError, match=r"manifest\.csv, up to line \d: the table cannot be read, field larger than"):
        load_datalist(tmp_path, "train")


def test_a_patient_in_both_splits_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png", "c.png"])
    rows = ["path,split,abnormal,patient", "a.png,train,0,p1", "b.png,test,1,p1", "c.png,test,0,p2"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"has 1 patient both in train and in test: p1\. Keep all"):
        load_datalist(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("manifest.csv", "path,split,abnormal,case\na.png,train,0,P1\nb.png,test,1,p1\n", "1 case both"),
        (
            "dataset.json",
            '{"training": [{"image": "a.png", "patient": 1}], "testing": [{"image": "b.png", "patient": 1.0}]}',
            "1 patient both",
        ),
    ],
)
def test_a_patient_is_in_both_splits_however_it_is_written(tmp_path: Path, name: str, content: str, said: str) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"has {said} in train and in test"):
        load_datalist(tmp_path / name, "train")


def test_series_are_not_chosen_among_what_a_list_names(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_datalist(table, "test", series=["7"])
    assert "--series 7 chooses nothing in" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('a.png,train,0,"5 inch\nb.png,train,0,\n', r"up to line 3: the table cannot be read, .*has to be closed"),
        (
            'a.png,train,0,"5 inch\nb.png,train,0,\nc.png,train,0,6 inch"\n',
            r"up to line 4: a cell in quotes spans several lines, which hides them",
        ),
    ],
)
def test_a_stray_quote_hides_no_rows(tmp_path: Path, rows: str, message: str) -> None:
    root = write_images(tmp_path, ["a.png", "b.png", "c.png"])
    (root / "manifest.csv").write_text("path,split,abnormal,note\n" + rows)
    with pytest.raises(ValueError, match=rf"manifest\.csv, {message}"):
        load_datalist(root, "train")


def test_a_stray_quote_in_the_first_line_hides_no_rows(tmp_path: Path) -> None:
    root = write_images(tmp_path, ["a.png", "b.png", "c.png"])
    (root / "manifest.csv").write_text('path,split,abnormal,"note\na.png,train,0,\nb.png,train,0,y"\nc.png,train,0,z\n')
    with pytest.raises(ValueError, match=r"manifest\.csv, up to line 3: a cell in quotes spans several lines"):
        load_datalist(root, "train")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["p0_T1.nii", "p0_FLAIR.nii"], ["p1_FLAIR.nii", "p1_T1.nii"]),
        (["T1/p0.nii", "FLAIR/p0.nii"], ["FLAIR/p1.nii", "T1/p1.nii"]),
        (["p0_0000.nii", "p0_0001.nii"], ["p1_0001.nii", "p1_0000.nii"]),
        (["p0_T1_brain.nii", "p0_T2_brain.nii"], ["p1_T2_brain.nii", "p1_T1_brain.nii"]),
    ],
)
def test_channels_that_a_list_swaps_are_named(tmp_path: Path, first: list[str], second: list[str]) -> None:
    write_images(tmp_path, [*first, *second])
    head = ["path", "split", "abnormal"]
    rows = [[";".join(files), "train", "0"] for files in (first, second)]
    said = r"in one order, since they become channels; got .*p0.* in one item, and .*p1.* in another"
    with pytest.raises(ValueError, match=said):
        load_datalist(write_csv(tmp_path, [head, *rows]), "train")
    tested = [[";".join(files)] for files in (first, second)]
    with pytest.raises(ValueError, match=said):
        [*studies_in(write_csv(tmp_path, [["path"], *tested]), Shard(1, 1))]
    long = ";".join(f"{'y' * 300}_{name}.nii" for name in ("T1", "FLAIR"))  # which no file can be called
    with pytest.raises(ValueError, match=said):
        load_datalist(write_csv(tmp_path, [head, *rows, [long, "train", "0"]]), "train")
    rows[1][0] = ";".join(reversed(second))
    assert len(load_datalist(write_csv(tmp_path, [head, *rows]), "train")) == 2

import json
import logging
import os
import random
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from inputs import write_csv, write_image, write_images, write_json
from monai.data import MetaTensor

from aeflow_monai.data.datalist import find_images, load_datalist
from aeflow_monai.output.maps import WriteMapsd

# --- what all layouts share -------------------------------------------------------------------------------------------


def test_unknown_section(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"section has to be one of train, validation, test, unsplit, all; got 'validate'"
    ):
        load_datalist(tmp_path, "validate")


def test_options_without_effect_are_noted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.nii")
    notes = load_datalist(tmp_path, "train", normal_classes=["HEALTHY"], series=[3]).notes
    assert notes["normal_classes"].startswith("normal_classes HEALTHY has no effect on")
    assert "the layout 'folder' says itself what is normal" in notes["normal_classes"]
    assert notes["series"].startswith("series 3 has no effect on")
    assert not load_datalist(tmp_path, "all", normal_classes=["HEALTHY"], series=[3]).notes
    assert not load_datalist(tmp_path, "train").notes


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
    items = load_datalist(table, "test")
    assert ["problem" in item for item in items] == [False, True]
    assert f"There is no file {table / 'masks/d.nii.gz'}. " in items[1]["problem"]
    (table / "x/a.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 files .*x/a\.nii\.gz"):  # a training stops
        load_datalist(table, "train")


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


# --- images without labels --------------------------------------------------------------------------------------------


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


def test_names_that_folders_do_not_tell_apart_get_a_hash(tmp_path: Path) -> None:
    write_images(tmp_path, ["x/y/a.png", "x_y/a.png"])
    cases = [item["case"] for item in find_images(tmp_path)]
    assert cases == [item["case"] for item in find_images(tmp_path)]
    assert len(set(cases)) == 2
    assert all(case.startswith("x_y_a_png-") for case in cases)


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
    with pytest.raises(
        ValueError,
        match=r"No image in .* or below\. Expected \.nii, .*\.tiff, or folders of DICOM files\. .*--dataset_dir",
    ):
        find_images(tmp_path)


def test_outputs_are_not_taken_for_images(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "maps/a_anomaly_map.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [item["case"] for item in find_images(tmp_path, exclude=tmp_path / "maps")] == ["a"]


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha"])
def test_outputs_of_earlier_runs_are_known_by_their_mark(tmp_path: Path, extension: str) -> None:
    write_images(tmp_path, ["a.nii.gz", "b.nii.gz"])
    affine = torch.eye(4, dtype=torch.float64)
    case = {"case": "a", "residual": MetaTensor(torch.rand(1, 2, 3, 2), affine=affine)}
    WriteMapsd(["residual"], tmp_path / "maps", extension)(case)
    moved = tmp_path / f"c{extension}"
    shutil.copy(tmp_path / f"maps/a_residual{extension}", moved)
    assert [item["case"] for item in find_images(tmp_path)] == ["a", "b"]
    assert [item["case"] for item in load_datalist(tmp_path, "train")] == ["a", "b"]
    with pytest.raises(ValueError, match=rf"c\{extension} is an output of this package, .*Name the image"):
        find_images(moved)
    write_csv(tmp_path, [("path", "split", "abnormal"), ("a.nii.gz", "test", "0"), (moved.name, "test", "1")])
    problems = [item.get("problem", "") for item in load_datalist(tmp_path, "test")]
    assert problems[0] == ""
    assert "is an output of this package" in problems[1]


# --- masks beside images ----------------------------------------------------------------------------------------------

MASKS = ["_mask", "_seg", "_label", "_lesion", "-mask", ".mask", "_Mask", "_mask_1", "_segmentation", "_dseg", "_roi"]


@pytest.mark.parametrize("ending", MASKS)
def test_masks_are_never_images(tmp_path: Path, ending: str) -> None:
    names = ["a.nii.gz", "b.nii.gz"]
    write_images(tmp_path / "folder", [*names, f"a{ending}.nii.gz"])
    write_images(tmp_path / "classes", ["NORMAL/b.png", "SICK/a.png", f"SICK/a{ending}.png"])
    for layout in ("folder", "classes"):
        assert {item["case"] for item in find_images(tmp_path / layout)} == {"a", "b"}
        items = load_datalist(tmp_path / layout, "train")
        assert [(item["case"], item["label"], "lesion" in item) for item in sorted(items, key=lambda x: x["case"])] == [
            ("a", 1, True),
            ("b", 0, False),
        ]


def test_folders_of_masks_hold_no_images(tmp_path: Path) -> None:
    images = ["imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "imagesTr/c_0000.nii.gz"]
    write_images(tmp_path, [*images, "labelsTr/a.nii.gz"])
    write_image(tmp_path / "labelsTr/b.nii.gz", 0)
    items = load_datalist(tmp_path, "train", layout="folder")
    assert [(item["case"], item["label"]) for item in items] == [("a_0000", 1), ("b_0000", 0), ("c_0000", 0)]
    assert len(find_images(tmp_path)) == 3


def test_several_masks_of_an_image_are_a_problem_of_it(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.nii.gz", "a_mask_1.nii.gz", "a_mask_2.nii.gz", "b.nii.gz", "b_brain_mask.nii.gz"])
    items = load_datalist(tmp_path, "train")
    assert "a.nii.gz has 2 masks: " in items[0]["problem"]
    assert items[0]["label"] == 1
    assert items[1]["label"] == 0


def test_masks_in_the_folder_of_a_patient(tmp_path: Path) -> None:
    write_images(tmp_path, ["p1/FLAIR.nii.gz", "p1/T1.nii.gz", "p1/mask.nii.gz", "p2/FLAIR.nii.gz", "p2/T1.nii.gz"])
    items = load_datalist(tmp_path, "train", layout="folder", modalities=("FLAIR", "T1"))
    assert [(item["case"], item["label"]) for item in items] == [("p1", 1), ("p2", 0)]
    items = load_datalist(tmp_path, "train", layout="folder")
    assert [item["label"] for item in items] == [1, 1, 0, 0]


def test_nothing_but_masks(tmp_path: Path) -> None:
    write_images(tmp_path, ["a_mask.png"])
    with pytest.raises(ValueError, match=r"No image in .*Not used in .*: 1 masks that are not used \(a_mask\.png\)"):
        find_images(tmp_path)
    assert find_images(tmp_path / "a_mask.png")[0]["case"] == "a_mask"  # whoever names it means it


# --- names and links --------------------------------------------------------------------------------------------------


def test_names_that_cannot_be_printed_are_problems_of_their_cases(tmp_path: Path) -> None:
    names = [b"a.png", b"new\nline.png", b"red\x1b[31m.png", b"latin\xe4.png", "über.png".encode(), b"sp ace .png"]
    content = write_image(tmp_path / "content.png").read_bytes()
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(content)
    items = find_images(tmp_path)
    problems = {item["case"]: item["problem"] for item in items if "problem" in item}
    assert sorted(problems) == ["latin_", "new_line", "red_[31m"]
    assert {item["case"] for item in items} - set(problems) == {"a", "content", "sp ace", "über"}
    for item in items:
        assert all(sign.isprintable() for value in item.values() for sign in value)
        json.dumps(item, ensure_ascii=False).encode()
    assert "Rename the file" in problems["new_line"]


def test_long_names_are_shortened_each_to_its_own(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{'x' * 240}{number}.png" for number in range(2)])
    rows = [(f"{'x' * 240}{number}.png", "test", number, f"{'y' * 300}{number}") for number in range(2)]
    for items in (find_images(tmp_path), _listed_in_table(tmp_path, rows)):
        cases = {item["case"] for item in items}
        assert len(cases) == 2
        assert {len(case) for case in cases} == {150}


def _listed_in_table(folder: Path, rows: Sequence[tuple[object, ...]]) -> list[dict[str, object]]:
    write_csv(folder, [("path", "split", "abnormal", "case"), *[tuple(map(str, row)) for row in rows]])
    return load_datalist(folder, "test")


@pytest.mark.parametrize(
    "names",
    [
        ["case1.nii", "case1.nii.gz"],
        ["case1.nii.gz", "case1.NII.GZ"],
        ["Case1.nii.gz", "case1.nii.gz"],
        ["case1..nii.gz", "case1.nii.gz"],
        ["\u00fc.nii.gz", "u\u0308.nii.gz"],
    ],
)
def test_names_that_differ_a_little(tmp_path: Path, names: Sequence[str]) -> None:
    for name in names:
        shutil.copy(write_image(tmp_path.with_name(f"{tmp_path.name}.nii.gz")), tmp_path / name)
    for items in (find_images(tmp_path), load_datalist(tmp_path, "all")):
        assert len({unicodedata.normalize("NFC", item["case"].casefold()) for item in items}) == 2
        assert len({item["image"] for item in items}) == 2


@pytest.mark.parametrize("case", ["a/b", "..", "a\nb", "x\\y", "nul\0"])
def test_cases_that_a_list_names_wrongly(tmp_path: Path, case: str) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    write_json(tmp_path, {"test": [{"image": "a.png", "case": case, "label": 0}, {"image": "b.png", "label": 1}]})
    items = load_datalist(tmp_path, "test")
    assert "outputs are named after it" in items[0]["problem"]
    assert "problem" not in items[1]
    assert not {"/", "\\", "\0", "\n"} & set(items[0]["case"])


def test_the_same_file_by_a_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_images(tmp_path, ["train/NORMAL/a.png", "train/NORMAL/b.png", "test/NORMAL/c.png", "test/SICK/d.png"])
    (tmp_path / "train/NORMAL/link.png").symlink_to("a.png")
    assert [item["case"] for item in load_datalist(tmp_path, "train")] == ["a", "b"]
    assert "1 images listed by another path (train/NORMAL/link.png)" in caplog.text
    os.link(tmp_path / "train/NORMAL/b.png", tmp_path / "test/NORMAL/e.png")
    with pytest.raises(ValueError, match=r"1 images more than once: .*b\.png, which is .*e\.png"):
        load_datalist(tmp_path, "train")


def test_a_cycle_of_links(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.nii.gz", "p/b.nii.gz"])
    (tmp_path / "p/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to("self")
    assert [item["case"] for item in find_images(tmp_path)] == ["a", "b"]
    assert len(load_datalist(tmp_path, "all", layout="folder")) == 2


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.nii.gz"])
    for name in ("b.nii.gz", "c"):
        os.mkfifo(tmp_path / name)
    assert [item["case"] for item in find_images(tmp_path)] == ["a"]


# --- real data --------------------------------------------------------------------------------------------------------


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


def test_one_file_is_not_all_modalities(tmp_path: Path) -> None:
    file = write_image(tmp_path / "a_flair.nii.gz")
    assert len(find_images(file, modalities=["flair"])) == 1
    with pytest.raises(ValueError, match=r"each of the modalities flair, t1, .*; got one file, .*a_flair\.nii\.gz"):
        find_images(file, modalities=["flair", "t1"])


def test_images_that_nothing_uses_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("a", "train"), ("b", "train"), ("c", "val"), ("d", "test")]
    for name, _ in rows:
        (tmp_path / f"{name}.png").touch()
    table = tmp_path / "manifest.csv"
    table.write_text("path,split,abnormal\n" + "".join(f"{name}.png,{split},0\n" for name, split in rows))
    left = f"Not used: 1 image of {table} in the split 'validation'. A training holds out a part of its own normals."
    for section in ("train", "test"):
        caplog.clear()
        load_datalist(table, section)
        assert left in caplog.text
    assert [item["case"] for item in load_datalist(table, "validation")] == ["c"]
    caplog.clear()
    assert [item["case"] for item in find_images(table)] == ["d"]
    assert "whose test images are scored, and the 2 to train on are not. Give their files" in caplog.text
    caplog.clear()
    table.write_text("path,split,abnormal\nd.png,test,0\n")
    find_images(table)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("scans.zip", "Unpack it, and give the folder."),
        ("scans.tar.gz", "Unpack it, and give the folder."),
        ("list.xlsx", "Save the table as CSV, with commas."),
        ("DICOMDIR", "Give its folder, "),
        ("notes.doc", "Give another one with --dataset_dir."),
    ],
)
def test_other_files_are_refused_with_what_to_do(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    for find in (find_images, lambda path: load_datalist(path, "train")):
        with pytest.raises(ValueError, match=rf"Expected a folder or a datalist .*; got .*{name}\. {remedy}"):
            find(tmp_path / name)

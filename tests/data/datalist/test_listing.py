import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from inputs import write_csv, write_image, write_images, write_json

from aeflow_monai.data.datalist import find_images, load_datalist

# --- what all layouts share -------------------------------------------------------------------------------------------


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
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 files .*masks/d\.nii\.gz"):
        load_datalist(table, "test")


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

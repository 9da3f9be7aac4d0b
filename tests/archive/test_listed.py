"""Lists of studies, read line by line."""

import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from inputs import write_image

from aeflow_monai.archive import Ledger, Shard, studies_in
from aeflow_monai.archive.listed import with_problem
from aeflow_monai.archive.study import study_key

ALL = Shard(1, 1)


def items_of(path: Path, shard: Shard = ALL) -> list[dict[str, Any]]:
    return [study.item for study in studies_in(path, shard)]


def test_lists_of_all_kinds_say_the_same(tmp_path: Path) -> None:
    names = ["a.png", "sub dir/b.nii.gz", "/elsewhere/c.png"]
    (tmp_path / "list.txt").write_text("\ufeff" + "\n".join(["", *names, "  "]), encoding="utf-8")
    (tmp_path / "list.csv").write_text("site,path\n" + "".join(f"x,{name}\n" for name in names))
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    found = [list(studies_in(tmp_path / f"list.{kind}", ALL)) for kind in ("txt", "csv", "jsonl")]
    assert found[0] == found[1] == found[2]
    assert [study.key for study in found[0]] == names
    assert [study.item["image"] for study in found[0]] == [str(tmp_path / name) for name in names[:2]] + names[2:]
    assert [study.item["case"] for study in found[0]] == ["a", "sub dir_b", "elsewhere_c"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_says_its_encoding_by_a_byte_order_mark(tmp_path: Path, encoding: str, end: str) -> None:
    names = ["Röntgen 1.png", "影像.png"]
    lines = {"txt": names, "csv": ["path", *names], "jsonl": [json.dumps({"image": name}) for name in names]}
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    for kind, content in lines.items():
        path = tmp_path / f"list.{kind}"
        path.write_bytes((mark + end.join(content) + end).encode(encoding))
        assert [study.key for study in studies_in(path, ALL)] == names


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl"])
def test_a_list_in_another_encoding_without_a_mark_is_refused(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes("path\na.png\n".encode(encoding))
    with pytest.raises(ValueError, match=rf"Expected text in .*{name}, in UTF-8, or in .*; got zero bytes\. Save it"):
        items_of(tmp_path / name)


def test_the_folder_above_a_linked_one_is_that_of_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    for place in (".", "far"):
        (tmp_path / place / "x.png").touch()
    (tmp_path / "far/deep/list.txt").write_text("../x.png\n")
    (item,) = items_of(tmp_path / "link/list.txt")
    assert Path(item["image"]) == tmp_path.resolve() / "far/x.png"
    (tmp_path / "both.txt").write_text("x.png\nlink/../x.png\nfar/../x.png\n")
    assert [study.key for study in studies_in(tmp_path / "both.txt", ALL)] == ["x.png", "far/x.png", "x.png"]


def test_names_and_channels_are_taken(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,case,patient\nt1.nii;t2.nii,scan 1,p1\nb.nii,,\n")
    first, second = items_of(tmp_path / "list.csv")
    assert first == {"image": [str(tmp_path / "t1.nii"), str(tmp_path / "t2.nii")], "case": "scan 1", "patient": "p1"}
    assert second == {"image": str(tmp_path / "b.nii"), "case": "b", "patient": "b"}


def test_no_study_is_taken_for_another(tmp_path: Path) -> None:
    listed = [
        *(
            "t1.nii;t2.nii",
            "t1.nii\\;t2.nii",
            "t1.nii\\\\;t2.nii",
            "t1.nii\\",
            "t1.nii\\\\",
            ["t1.nii", "t2.nii"],
            ["t2.nii", "t3.nii"],
        ),
        *(
            ["t1.nii\\", "t2.nii"],
            ["t3.nii", "t1.nii\\"],
            ["a", "b", "c"],
            ["a;b", "c"],
            ["a", "b;c"],
            "a;b;c",
            "a\\;b;c",
            "a;b\\;c",
        ),
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps({"image": images}) + "\n" for images in listed), encoding="utf-8")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.begin(studies_in(path, ALL)) == 0  # none repeats another
        images = [claim.item["image"] for claim in ledger.claim(99)]
    assert images == [
        str(tmp_path / each) if isinstance(each, str) else [str(tmp_path / part) for part in each] for each in listed
    ]


def test_paths_of_windows_are_keys_as_they_are() -> None:
    assert study_key([r"C:\site\t1.nii"]) == r"C:\site\t1.nii"
    assert study_key([r"site\t1.nii", r"site\t2.nii"]) == r"site\t1.nii;site\t2.nii"


def test_half_a_character_in_json_is_a_study_that_fails_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"image": "a\\ud800.png", "case": "\\udfff"}\n', encoding="utf-8")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(studies_in(path, Shard(1, 1)))
        (claim,) = ledger.claim(9)
    assert str(with_problem(claim.item)["problem"]).startswith("There is no file ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "list.jsonl",
            '{"image": "a.png"}\n{"image": \n',
            r"line 2: expected a JSON object with path or image, .*; got ",
        ),
        (
            "list.jsonl",
            '{"file": "a.png"}\n',
            r"line 1: expected a JSON object with path or image, a path or a list of",
        ),
        (
            "list.jsonl",
            '{"image": 5}\n',
            r"line 1: expected a JSON object with path or image, .*; got \{\"image\": 5\}\.",
        ),
        ("list.jsonl", '{"image": ["a.png", null]}\n', r"line 1: expected a JSON object with path or image"),
        ("list.jsonl", '{"image": {"t1": "a.png"}}\n', r"line 1: expected a JSON object with path or image"),
        ("list.jsonl", '{"image": ["a.png", ""]}\n', r"line 1: it names no image"),
        ("list.jsonl", '{"image": []}\n', r"line 1: it names no image"),
        ("list.csv", "file\na.png\n", r"expected one column path or image in its first line; got file\."),
        ("list.csv", "path,case\n,a\n", r"line 2: it names no image"),
        ("list.csv", "path,case\n", r"list\.csv names no study: it is empty"),
        ("list.txt", "\n\n", r"list\.txt names no study: it is empty"),
        (
            "list.csv",
            'path,comment\na.png,"5 inch\nb.png,\n',
            r"up to line 3: the table cannot be read, .*has to be closed",
        ),
        (
            "list.csv",
            'path,comment\na.png,"5 inch\nb.png,\nc.png,6 inch"\nd.png,\n',
            r"up to line 4: a cell in quotes spans several lines, which hides them",
        ),
        ("list.csv", 'path,"note\na.png,x\nb.png,y"\nc.png,z\n', r"up to line 3: a cell in quotes spans several lines"),
        ("list.csv", 'path,"note\na.png,x\n', r"up to line 2: the table cannot be read, .*has to be closed"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        items_of(tmp_path / name)


def test_a_folder_is_divided_too(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / "scans" / f"{number}.png", number)
    found = [item["case"] for number in (1, 2, 3) for item in items_of(tmp_path / "scans", Shard(number, 3))]
    assert sorted(found) == sorted(map(str, range(12)))


def test_lines_at_the_end_move_no_study(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{number}.png\n" for number in range(100)))
    before = [item["case"] for item in items_of(path, Shard(2, 7))]
    with path.open("a") as file:
        file.writelines(f"{number}.png\n" for number in range(100, 200))
    after = [item["case"] for item in items_of(path, Shard(2, 7))]
    assert after[: len(before)] == before
    assert len(after) > len(before)


def test_a_long_list_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"  # lines are slow while memory is traced
    with path.open("w") as file:
        for hundred in range(300):
            file.write("".join(f"archive/{hundred:03d}/{number:03d}/ct.nii.gz\n" for number in range(100)))
    tracemalloc.start()
    found = sum(1 for _ in studies_in(path, Shard(1, 3000)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 1 <= found <= 30  # ten are expected
    assert path.stat().st_size > 700_000
    assert peak < 100_000  # bytes


def test_a_list_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"path": "a.png"}\nno JSON\n')
    (first,) = itertools.islice(studies_in(path, ALL), 1)
    assert first.key == "a.png"


def test_a_list_is_read_as_a_manifest_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "list.csv").write_text("path, split, abnormal, case\na.png, train, 0, x\nb.png, test, 1, c1\n")
    (item,) = items_of(tmp_path / "list.csv")
    assert (item["image"], item["case"]) == (str(tmp_path / "b.png"), "c1")
    assert "1 row of" in caplog.text
    assert "of other splits than 'test' are not scored" in caplog.text
    (tmp_path / "list.csv").write_text("path,split\na.png,training\n")
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": "a.png", "split": "training"}))
    for kind, line in (("csv", 2), ("jsonl", 1)):
        wrong = rf"line {line}: split has to be one of train, val, validation, test; got 'training'"
        with pytest.raises(ValueError, match=wrong):
            items_of(tmp_path / f"list.{kind}")


def test_of_a_list_with_splits_only_test_images_are_scored(tmp_path: Path) -> None:
    rows = [("a", "train"), ("b", "test"), ("c", "Test "), ("d", "val"), ("e", "")]
    (tmp_path / "list.csv").write_text("path,split\n" + "".join(f"{name}.png,{split}\n" for name, split in rows))
    (tmp_path / "list.jsonl").write_text(
        "".join(json.dumps({"path": f"{name}.png", "split": split}) + "\n" for name, split in rows)
    )
    for kind in ("csv", "jsonl"):
        assert [item["case"] for item in items_of(tmp_path / f"list.{kind}")] == ["b", "c", "e"]
    (tmp_path / "list.csv").write_text("path,split\na.png,train\n")
    with pytest.raises(ValueError, match="names no study: it is empty, or has no row of the split 'test'"):
        items_of(tmp_path / "list.csv")


def test_modalities_are_ordered_by_the_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\na_flair.nii;a_t1.nii\nb_t1.nii;b_t2.nii\nc_t1.nii\n")
    found = [study.item for study in studies_in(tmp_path / "list.csv", ALL, modalities=["t1", "flair"])]
    assert found[0]["image"] == [str(tmp_path / "a_t1.nii"), str(tmp_path / "a_flair.nii")]
    assert "problem" not in found[0]
    for item, got in zip(found[1:], ("b_t1.nii, b_t2.nii", "c_t1.nii"), strict=True):
        assert f"one file for each of the modalities t1, flair; got {got}." in item["problem"]


def test_a_list_gives_one_path(tmp_path: Path) -> None:
    for content in ("path,path\na.png,b.png\n", "path,image\na.png,b.png\n"):
        (tmp_path / "list.csv").write_text(content)
        with pytest.raises(ValueError, match="expected one column path or image in its first line; got path, "):
            items_of(tmp_path / "list.csv")
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": "a.png", "image": "b.png"}))
    with pytest.raises(ValueError, match="line 1: expected a JSON object with path or image"):
        items_of(tmp_path / "list.jsonl")

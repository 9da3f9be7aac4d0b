"""Test images of another source: whose they are, which come first, and what is written of them."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def sources(imported: Callable[[str], ModuleType]) -> ModuleType:
    return imported("other_sources")


def test_patient_and_slice_of_a_head_are_told_from_the_digits_of_a_name(sources: ModuleType) -> None:
    assert [sources.of_head(Path(f"{name}.jpg")) for name in ("4914", "995", "10010", "13033")] == [
        (49, 14),
        (99, 5),
        (100, 10),
        (130, 33),
    ]


def test_each_patient_has_a_turn_before_one_has_two(sources: ModuleType) -> None:
    images = [Path(f"{patient}_{number}.png") for patient in "abc" for number in range(3)]
    order = [image.stem[0] for image in sources.in_turns(images, lambda image: image.stem[0])]
    assert [sorted(order[start : start + 3]) for start in (0, 3, 6)] == [["a", "b", "c"]] * 3


def test_a_source_is_a_test_list_without_what_lies_in_both_kinds(sources: ModuleType, tmp_path: Path) -> None:
    for kind, levels in (("well", (1, 2, 3)), ("ill", (3, 4))):
        (tmp_path / "clone" / kind).mkdir(parents=True)
        for level in levels:
            Image.fromarray(np.full((700, 600), 40 * level, np.uint8)).save(tmp_path / f"clone/{kind}/p{level}.png")
    kinds = sources.Kinds("owner/clone", "abc", sources.found("well/*"), sources.found("ill/*"))
    assert sources.write(kinds, tmp_path / "clone", tmp_path / "out") == {"normal": 2, "abnormal": 2}
    with (tmp_path / "out/manifest.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted((row["patient"], row["split"], row["abnormal"]) for row in rows) == [
        ("p1", "test", "0"),
        ("p2", "test", "0"),
        ("p3", "test", "1"),
        ("p4", "test", "1"),
    ]
    for row in rows:
        with Image.open(row["path"]) as image:
            assert image.size == (439, 512)
    with pytest.raises(SystemExit, match=r"Expected a clone of github\.com/owner/clone at abc in .*nowhere"):
        sources.write(kinds, tmp_path / "nowhere", tmp_path / "other")

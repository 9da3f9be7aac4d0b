"""Duplicates of images among held-out normals, and among those of a test."""

import gzip
from pathlib import Path

import pytest

from aeflow_monai.engine.runs.duplicates import (
    FORM,
    fingerprints_for,
    fingerprints_of,
    notes_on_duplicates,
    require_several_images,
    warn_of_duplicates,
)


def items_of(folder: Path, contents: dict[str, str], patient: str = "") -> list[dict[str, object]]:
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [
        {"image": str(folder / name), "case": name, **({"patient": patient} if patient else {})} for name in contents
    ]


def test_duplicates_are_told_whatever_they_are_called(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held_out = items_of(tmp_path, {"a": "1", "b": "2", "c": "1", "d": "2", "e": "3"})
    trained = items_of(tmp_path, {"x": "3", "y": "4"})
    require_several_images(held_out, fingerprints_of(held_out))
    warn_of_duplicates(held_out, fingerprints_of(held_out), fingerprints_of(trained))
    assert "1 of 5 held-out normals are duplicates of images that are trained on. Thresholds of images" in caplog.text
    assert "2 of 5 normals that thresholds are set on are duplicates of others: c, d. Each counts" in caplog.text


def test_a_packed_image_is_a_duplicate_of_the_same_one_unpacked(tmp_path: Path) -> None:
    items = items_of(tmp_path, {"a.nii": "voxels", "b.nii.gz": "", "c.nii.gz": "", "damaged.nii.gz": "no gzip"})
    for name, level in (("b", 1), ("c", 9)):
        (tmp_path / f"{name}.nii.gz").write_bytes(gzip.compress(b"voxels", level, mtime=level))
    plain, fast, small, damaged = fingerprints_of(items)
    assert plain == fast == small
    assert damaged not in ("", plain)
    of_earlier_version = fingerprints_for({}, items)
    assert len({*of_earlier_version}) == 4
    assert fingerprints_for(FORM, items) == [plain, fast, small, damaged]


def test_packed_images_that_differ_far_inside_are_no_duplicates(tmp_path: Path) -> None:
    items = items_of(tmp_path, {"a.nii.gz": "", "b.nii.gz": "", "b.nii": ""})
    for name in ("a", "b"):
        content = bytes(2**26 + 5) + name.encode()
        (tmp_path / f"{name}.nii.gz").write_bytes(gzip.compress(content, 1))
    (tmp_path / "b.nii").write_bytes(content)
    first, second, unpacked = fingerprints_of(items)
    assert first != second == unpacked


def test_images_of_one_patient_and_missing_ones_are_no_duplicates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_one = items_of(tmp_path, {"a": "1", "b": "1"}, patient="p")
    absent = [{"image": str(tmp_path / name), "case": name} for name in ("absent", "gone")]
    for held_out in (of_one, absent, [*of_one, *absent], items_of(tmp_path, {"a": "1"})):
        require_several_images(held_out, fingerprints_of(held_out))
        warn_of_duplicates(held_out, fingerprints_of(held_out))
    assert not caplog.text


def test_duplicates_of_one_image_alone_are_refused(tmp_path: Path) -> None:
    held_out = items_of(tmp_path, {"a": "1", "b": "1"})
    with pytest.raises(ValueError, match=r"got 2 duplicates of one image: a, b\. Give other images too"):
        require_several_images(held_out, fingerprints_of(held_out))


def test_test_images_that_are_there_twice_are_told_and_contradictions_too(tmp_path: Path) -> None:
    tested = items_of(tmp_path, {"a": "1", "b": "2", "c": "1", "d": "2", "e": "3"})
    for item, label in zip(tested, (0, 1, 1, 1, 0), strict=True):
        item["label"] = label
    assert notes_on_duplicates(tested, fingerprints_of(tested)) == [
        "2 of 5 test images are duplicates of others: c, d. Each counts as a case.",
        "1 test image is called normal under one name and abnormal under another: c. One of the labels is wrong.",
    ]
    assert not notes_on_duplicates(tested[:2], fingerprints_of(tested[:2]))
    absent = [{"image": str(tmp_path / name), "case": name, "label": 0} for name in ("absent", "gone")]
    assert not notes_on_duplicates(absent, fingerprints_of(absent))

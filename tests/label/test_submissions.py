"""Labels that readers submit to a real server: checked before they are kept."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from asking import CASE, ask, form, gzip_of_zeros, refused
from outputs import contents

pytestmark = pytest.mark.usefixtures("nothing_is_written")


@pytest.fixture
def studies(guarded_studies: Path) -> Path:
    return guarded_studies


@pytest.fixture
def server(guarded: Any) -> Any:
    return guarded


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grow": 1}, "of its image's shape"),
        ({"value": 0.5, "dtype": np.float32}, "whole numbers from 0"),
        ({"value": np.nan, "dtype": np.float32}, "whole numbers from 0"),
        ({"value": -1, "dtype": np.int16}, "whole numbers from 0"),
        ({"value": 300, "dtype": np.int16}, "whole numbers from 0"),
    ],
    ids=str,
)
def test_a_label_is_checked_when_it_is_submitted(
    server: Any, studies: Path, changes: dict[str, Any], words: str
) -> None:
    stored = contents(studies / "labels")
    content = gzip_of_zeros(studies, **changes)
    answer = ask(server, "PUT", f"/datastore/label?image={CASE}", **form(("label", "a.nii.gz", content)))
    assert words in refused(answer, 400)
    assert contents(studies / "labels") == stored
    assert CASE not in str(server.get("/datastore/?output=train"))


def test_a_label_that_cannot_be_read_or_compared_is_refused(server: Any, studies: Path) -> None:
    stored = contents(studies / "labels")
    whole = gzip_of_zeros(studies)
    for content in (b"", b"no label", whole[: len(whole) // 2]):
        answer = ask(server, "PUT", f"/datastore/label?image={CASE}", **form(("label", "a.nii.gz", content)))
        assert "the label cannot be read" in refused(answer, 400)
    answer = ask(server, "PUT", "/datastore/label?image=broken", **form(("label", "a.nii.gz", whole)))
    assert "the image cannot be read" in refused(answer, 400)
    moved = nib.load(studies / f"{CASE}.nii.gz")
    elsewhere = nib.Nifti1Image(np.zeros(moved.shape, np.uint8), moved.affine @ np.diag([-1, 1, 1, 1]))
    content = gzip.compress(elsewhere.to_bytes())
    answer = ask(server, "PUT", f"/datastore/label?image={CASE}", **form(("label", "a.nii.gz", content)))
    assert "lies where its image does" in refused(answer, 400)
    assert contents(studies / "labels") == stored


def test_a_label_with_its_axes_in_another_order_is_its_images(server: Any, studies: Path) -> None:
    source = nib.load(studies / f"{CASE}.nii.gz")
    label = nib.Nifti1Image(np.zeros(source.shape, np.uint8), source.affine)
    turned = gzip.compress(label.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]])).to_bytes())
    answer = ask(server, "PUT", f"/datastore/label?image={CASE}", **form(("label", "a.nii.gz", turned)))
    assert answer.status == 200, answer.text
    assert ask(server, "DELETE", f"/datastore/label?id={CASE}&tag=final").status == 200

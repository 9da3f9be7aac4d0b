"""Copies of slices: made once, kept in memory or in files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import RandGaussianNoised

from aeflow_monai.data.slice_copies import SliceCopies

SLICES: list[dict[str, Any]] = [{"image": torch.full((1, 8, 8), 0.1 * i), "case": f"case{i}"} for i in range(4)]


class Counted(RandGaussianNoised):  # type: ignore[misc]
    """Noise that counts how often it is made."""

    n_made = 0

    def __call__(self, data: Any) -> Any:
        self.n_made += 1
        return super().__call__(data)


@pytest.mark.parametrize("in_files", [False, True])
def test_each_copy_is_made_once_and_kept(in_files: bool, tmp_path: Path) -> None:
    noise = Counted("image", prob=1.0)
    copies = SliceCopies(SLICES, noise, copies=2, seed=3, folder=tmp_path / "kept" if in_files else None)
    first = [copies[index] for index in (5, 0, 7)]
    again = [copies[index] for index in (5, 0, 7)]
    assert noise.n_made == 3
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(first, again, strict=True))
    assert [item["case"] for item in first] == ["case1", "case0", "case3"]
    assert not torch.equal(first[0]["image"], copies[1]["image"])
    assert not any(path.is_file() for path in tmp_path.rglob("*"))  # the files have no name, and go with the process


def test_what_is_kept_is_what_the_transform_made_but_for_half_precision() -> None:
    noise = RandGaussianNoised("image", prob=1.0)
    copies = SliceCopies(SLICES, noise, seed=3)
    kept = copies[2]["image"]
    assert kept.dtype == torch.float32
    made = noise.set_random_state(seed=copies.seed_of(2))(SLICES[2])["image"]
    assert torch.allclose(kept, torch.as_tensor(made), rtol=0, atol=0.0003)
    assert not torch.equal(kept, SLICES[2]["image"])


class Returned:
    """A transform that gives what it is told to, copy by copy."""

    def __init__(self, *items: dict[str, Any]) -> None:
        self.items = list(items)

    def set_random_state(self, seed: int) -> None:
        pass

    def __call__(self, data: Any) -> dict[str, Any]:
        return {**data, **self.items.pop(0)}


def test_arrays_of_numpy_and_what_else_the_transform_says_are_kept() -> None:
    copies = SliceCopies(SLICES, Returned({"image": np.full((1, 8, 8), 0.75), "case": "moved", "kind": 3}))
    for item in (copies[0], copies[0]):
        assert torch.equal(item["image"], torch.full((1, 8, 8), 0.75))
        assert (item["case"], item["kind"]) == ("moved", 3)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"image": torch.zeros(3, 8, 8)},
            r"of one shape: \{'image': \(1, 8, 8\)\} so far, now \{'image': \(3, 8, 8\)\}",
        ),
        ({"lesion": torch.zeros(1, 8, 8)}, "of one shape"),
        ({"image": torch.full((1, 8, 8), 7e4)}, r"in \[0, 1\]; got a copy with image beyond 1000"),
        ({"image": torch.full((1, 8, 8), float("nan"))}, r"in \[0, 1\]; got a copy with image beyond 1000, or NaN"),
    ],
)
def test_a_copy_that_does_not_fit_the_others_is_refused(second: dict[str, Any], message: str) -> None:
    copies = SliceCopies(SLICES, Returned({}, second))
    copies[0]
    with pytest.raises(ValueError, match=message):
        copies[1]


def test_another_process_makes_its_own() -> None:
    copies = SliceCopies(SLICES, RandGaussianNoised("image", prob=1.0), copies=500)
    before = copies[5]["image"]
    sent = pickle.dumps(copies)
    assert len(sent) < 100_000
    assert torch.equal(pickle.loads(sent)[5]["image"], before)

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aeflow_monai.data.varied_slices import RandAcquisitiond, VariedSlices


def slice_of(seed: int, channels: int = 1) -> Tensor:
    """Smooth tissue in the middle of a black slice."""
    coarse = torch.rand(1, channels, 6, 8, generator=torch.Generator().manual_seed(seed))
    return F.pad(F.interpolate(coarse, size=(48, 64), mode="bilinear")[0].clamp(0, 1), [8, 8, 8, 8])


SLICES: list[dict[str, Any]] = [{"image": slice_of(seed), "case": f"case{seed}"} for seed in range(24)]


def test_each_slice_has_one_copy_which_differs_a_little_and_the_slice_stays() -> None:
    copies = [*VariedSlices(SLICES)]
    assert [copy["case"] for copy in copies] == [item["case"] for item in SLICES]
    for seed, (copy, item) in enumerate(zip(copies, SLICES, strict=True)):
        assert torch.equal(item["image"], slice_of(seed))
        assert type(copy["image"]) is Tensor
        assert copy["image"].shape == item["image"].shape
        assert copy["image"].min() >= 0
        assert copy["image"].max() <= 1
        assert 0.001 < (copy["image"] - item["image"]).abs().mean() < 0.15
    with pytest.raises(IndexError, match="Index 24 of 24 slices"):
        VariedSlices(SLICES)[24]


def test_several_copies_of_a_slice_differ_and_none_are_no_slices() -> None:
    several = VariedSlices(SLICES, copies=2)
    assert len(several) == 48
    assert several[3]["case"] == several[27]["case"] == "case3"
    assert not torch.equal(several[3]["image"], several[27]["image"])
    assert len(VariedSlices(SLICES, copies=0)) == 0


def test_copies_depend_on_seed_and_place_and_not_on_the_order() -> None:
    one, again, other = (VariedSlices(SLICES, seed=seed) for seed in (7, 7, 8))
    backward = [again[index]["image"] for index in reversed(range(24))][::-1]
    assert all(torch.equal(one[index]["image"], backward[index]) for index in range(24))
    assert not all(torch.equal(one[index]["image"], other[index]["image"]) for index in range(24))


def test_acquisitions_differ_in_each_of_the_ways() -> None:
    image = slice_of(0, channels=2)
    tissue = image > 0
    found = set()
    for seed in range(60):
        varied = RandAcquisitiond("image", image.shape[1:]).set_random_state(seed=seed)({"image": image})["image"]
        is_noisy = bool((varied[~tissue] > 0).double().mean() > 0.3)
        same_place = bool((varied[~tissue] == 0).all())
        found.add("noisy" if is_noisy else "darker or brighter" if same_place else "blurred, moved or turned")
    assert found == {"noisy", "darker or brighter", "blurred, moved or turned"}

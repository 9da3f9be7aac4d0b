import inspect
from typing import Any

import pytest
import torch

from aeflow_monai.data.synthetic_lesions import _UNDECIDED, LesionSlices, RandLesiond
from aeflow_monai.network.loss import _UNTOUCHED, MixtureLoss


def head(seed: int = 0, channels: int = 1) -> torch.Tensor:
    """An ellipse of uneven tissue on an empty background, (C, 64, 48) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1.2, 1.2, 64), torch.linspace(-1.2, 1.2, 48), indexing="ij")
    tissue = 0.3 + 0.4 * torch.rand(channels, 64, 48, generator=generator)
    return tissue * (y.square() + x.square() < 1)


def planted(seed: int, channels: int = 1, **options: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slice before and after, and mask."""
    before = head(seed, channels)
    item = RandLesiond("image", **options).set_random_state(seed=seed)({"image": before.clone()})
    return before, item["image"], item["lesion"]


@pytest.mark.parametrize("seed", range(40))
def test_only_the_masked_foreground_changes(seed: int) -> None:
    before, after, mask = planted(seed, channels=2)
    assert mask.shape == (1, 64, 48)
    for values in (mask, after):
        assert values.min() >= 0
        assert values.max() <= 1
    change = (after - before).abs().amax(dim=0, keepdim=True)
    assert torch.equal(change > 0, mask > 0)
    assert (change[mask > 0.1] >= 0.02).all()  # what nobody can see is called neither abnormal nor normal
    assert not (mask > 0)[(before == 0).all(dim=0, keepdim=True)].any()


def test_nearly_every_slice_gets_a_lesion() -> None:
    # a small one may take its tissue from the empty background, which is none
    assert sum(planted(seed)[2].max() > 0.3 for seed in range(100)) > 90


def test_lesions_are_of_many_sizes_and_go_both_ways() -> None:
    found = [planted(seed, most=1, radius=(0.01, 0.08)) for seed in range(200)]
    areas = torch.tensor([float((mask > 0.5).sum()) for _, _, mask in found])
    # radii from 1 % to 8 % of 64 pixels, and small ones more frequent
    assert areas.min() <= 4
    assert 50 < areas.max() < 150
    assert areas.median() < areas.mean()
    seen = [(after - before)[mask > 0.5] for before, after, mask in found]
    shifts = torch.stack([shift.mean() for shift in seen if len(shift)])
    assert (shifts > 0.05).sum() > 20
    assert (shifts < -0.05).sum() > 20


def test_number_and_size_are_bounded() -> None:
    few, many, large = (
        sum(float(planted(seed, **options)[2].sum()) for seed in range(40)) / 40
        for options in (
            {"most": 1, "radius": (0.03, 0.03)},
            {"most": 5, "radius": (0.03, 0.03)},
            {"most": 1, "radius": (0.12, 0.12)},
        )
    )
    # three lesions in the mean instead of one, some over another; sixteen times the area, some beyond the edge
    assert 2 * few < many < 3.5 * few
    assert 6 * few < large < 20 * few


def test_the_mask_may_have_another_name() -> None:
    item = RandLesiond("image", lesion_key="planted").set_random_state(seed=1)({"image": head()})
    assert set(item) == {"image", "planted"}


def test_same_state_same_lesions() -> None:
    for one, other in zip(planted(3), planted(3), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(planted(3)[2], planted(4)[2])


def test_all_keys_get_the_same_lesions() -> None:
    item = RandLesiond(["t1", "t2"]).set_random_state(seed=1)({"t1": head(0), "t2": head(1)})
    assert set(item) == {"t1", "t2", "lesion"}
    for key, before in (("t1", head(0)), ("t2", head(1))):
        changed = item[key] != before
        assert changed.any()
        assert not (changed & (item["lesion"] == 0)).any()


@pytest.mark.parametrize("empty", [True, False])
def test_what_gets_no_lesion_stays_as_it_is(empty: bool) -> None:
    before = torch.zeros(1, 32, 32) if empty else head()
    item = RandLesiond("image", prob=1.0 if empty else 0.0)({"image": before.clone()})
    assert torch.equal(item["image"], before)
    assert not item["lesion"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most": 0}, r"most .* 1 or more; got 0"),
        ({"radius": (0.0, 0.1)}, r"radius .* in \(0, 1\]; got \(0\.0, 0\.1\)"),
        ({"radius": (0.2, 0.1)}, r"radius .* smallest and a largest fraction"),
        ({"change": (0.5, 1.5)}, r"change .* in \(0, 1\]; got \(0\.5, 1\.5\)"),
    ],
)
def test_wrong_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandLesiond("image", **options)


@pytest.mark.parametrize("shape", [(64, 48), (1, 64, 48, 3)])
def test_what_is_no_slice_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected slices \(C, H, W\) of one size; got .*Cut volumes into slices"):
        RandLesiond("image")({"image": torch.zeros(shape)})


def test_an_empty_channel_stays_empty() -> None:
    for seed in range(30):
        image = torch.cat([head(seed), torch.zeros(1, 64, 48)])
        item = RandLesiond("image").set_random_state(seed=seed)({"image": image})
        assert not item["image"][1].any()


class TestLesionSlices:
    slices: list[dict[str, Any]] = [{"image": head(seed), "case": f"case{seed}"} for seed in range(3)]  # noqa: RUF012

    def test_each_copy_has_lesions_of_its_own_and_the_slices_stay(self) -> None:
        dataset = LesionSlices(self.slices, RandLesiond("image"), copies=2)
        items = [dataset[index] for index in range(len(dataset))]
        assert [item["case"] for item in items] == ["case0", "case1", "case2"] * 2
        assert not torch.equal(items[0]["lesion"], items[3]["lesion"])
        for seed, item in enumerate(self.slices):
            assert torch.equal(item["image"], head(seed))
        for index, before in enumerate([head(seed) for seed in range(3)] * 2):
            made = RandLesiond("image").set_random_state(seed=dataset.seed_of(index))({"image": before})
            assert torch.equal(made["image"] != before, made["lesion"] > 0)
            assert made["lesion"].any()
            for key in ("image", "lesion"):  # which are kept in half precision
                assert torch.allclose(items[index][key], made[key], rtol=0, atol=0.0003)
        with pytest.raises(IndexError, match=r"Index 6 of 6 slices"):
            dataset[6]

    def test_lesions_depend_on_seed_and_place_and_not_on_the_order(self) -> None:
        one, again, other = (LesionSlices(self.slices, RandLesiond("image"), seed=seed) for seed in (7, 7, 8))
        forward = [one[index]["image"] for index in range(3)]
        backward = [again[index]["image"] for index in (2, 1, 0)][::-1]
        assert all(torch.equal(x, y) for x, y in zip(forward, backward, strict=True))
        assert not torch.equal(one[0]["lesion"], other[0]["lesion"])

    def test_no_copies_are_no_slices(self) -> None:
        assert len(LesionSlices(self.slices, RandLesiond("image"), copies=0)) == 0
        with pytest.raises(IndexError, match="Index 0 of 0 slices"):
            LesionSlices(self.slices, RandLesiond("image"), copies=0)[0]

    def test_a_negative_number_of_copies_is_refused(self) -> None:
        with pytest.raises(ValueError, match="Copies of each slice have to be 0 or more; got -1"):
            LesionSlices(self.slices, RandLesiond("image"), copies=-1)


def test_what_is_too_faint_to_be_seen_is_neither_normal_nor_abnormal_for_the_loss() -> None:
    least = inspect.signature(MixtureLoss).parameters["least"].default
    assert _UNTOUCHED < _UNDECIDED < least

from typing import Any

import pytest
import torch
from torch import Tensor

from aeflow_monai.geometry import Places
from aeflow_monai.score.position import PositionMoments, PositionNorm, blur_through_slices

SIZE = 32


def volume_like(n_cases: int, n_slices: int = 9, seed: int = 0) -> tuple[Tensor, Places, list[str]]:
    """Maps of normals that are high on the left and in the upper slices, and noisier there."""
    generator = torch.Generator().manual_seed(seed)
    heights = torch.linspace(0, 1, n_slices).repeat(n_cases)
    left = torch.linspace(1, 0, SIZE).expand(SIZE, SIZE)
    level = heights.view(-1, 1, 1, 1) + left
    maps = 3 * level + (0.5 + level) * torch.randn(len(heights), 1, SIZE, SIZE, generator=generator)
    cases = [f"case_{index // n_slices}" for index in range(len(heights))]
    return maps, Places(["axial"] * len(heights), heights), cases


def moments_of(
    maps: Tensor, places: Places | None, cases: list[str], foreground: Tensor | None = None
) -> PositionMoments:
    moments = PositionMoments()
    counted = torch.ones_like(maps) if foreground is None else foreground
    for index, case in enumerate(cases):
        one = slice(index, index + 1)
        place = None if places is None else places.part(one)
        moments.add(maps[one], counted[one], place, case)
    return moments


def fitted(*args: Any, **options: Any) -> PositionNorm:
    norm = PositionNorm()
    norm.fit([moments_of(*args, **options)])
    return norm


def test_before_it_is_fitted_it_changes_nothing() -> None:
    maps, places, _ = volume_like(2)
    assert torch.equal(PositionNorm()(maps, places), maps)


def test_what_is_high_in_all_normals_is_not_abnormal() -> None:
    norm = fitted(*volume_like(20))
    maps, places, _ = volume_like(20, seed=1)  # others
    found = norm(maps, places)
    for part in (found[..., :8], found[..., -8:], found[places.positions < 0.2], found[places.positions > 0.8]):
        assert part.mean().item() == pytest.approx(0, abs=0.3)
        assert part.std().item() == pytest.approx(1, abs=0.15)
    # while before the left and the top stood out
    assert maps[..., :8].mean() > maps[..., -8:].mean() + 2
    spot = maps.clone()
    spot[..., 16, 20] += 20
    torch.testing.assert_close(norm(spot, places) > found + 5, spot > maps + 1)


def test_planes_do_not_mix() -> None:
    maps, places, cases = volume_like(6)
    both = Places(["axial", "coronal"] * (len(maps) // 2), places.positions)
    shifted = maps + torch.tensor([0.0, 100.0]).repeat(len(maps) // 2).view(-1, 1, 1, 1)
    found = fitted(shifted, both, cases)(shifted, both)
    assert found[0::2].mean().item() == pytest.approx(found[1::2].mean().item(), abs=0.3)


def test_images_of_no_volume_have_one_place() -> None:
    maps = volume_like(6)[0]
    lone = Places(["axial"] * len(maps), torch.full((len(maps),), 0.5))
    cases = [str(index) for index in range(len(maps))]
    assert torch.equal(fitted(maps, None, cases)(maps, lone), fitted(maps, lone, cases)(maps))


def test_background_does_not_count() -> None:
    maps, places, cases = volume_like(6)
    foreground = torch.ones_like(maps)
    foreground[..., :12, :] = 0
    changed = torch.where(foreground > 0, maps, 1000 * torch.rand(maps.shape))
    one, other = (fitted(each, places, cases, foreground=foreground) for each in (maps, changed))
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.std, other.std)


def test_between_slices_that_lie_far_apart_the_nearest_speak() -> None:
    maps, places, cases = volume_like(20, n_slices=3)
    norm, black = fitted(maps, places, cases), torch.zeros(1, 1, SIZE, SIZE)
    nearest = norm(black, Places(["axial"], torch.tensor([0.5])))
    for height in (0.3, 0.4, 0.6, 0.7):
        found = norm(black, Places(["axial"], torch.tensor([height])))
        torch.testing.assert_close(found, nearest, rtol=0.1, atol=0.1)


def test_one_slice_of_each_case_speaks_for_all_heights() -> None:
    maps = volume_like(6)[0]
    middle = Places(["axial"] * len(maps), torch.full((len(maps),), 0.5))
    norm = fitted(maps, middle, [str(index) for index in range(len(maps))])
    for height in torch.linspace(0, 1, 21):
        at_height = Places(middle.planes, torch.full((len(maps),), float(height)))
        torch.testing.assert_close(norm(maps, at_height), norm(maps, middle), rtol=1e-3, atol=1e-3)


def test_a_place_that_no_normal_has_is_compared_with_normals_anywhere() -> None:
    maps, places, cases = volume_like(6)
    norm = fitted(maps, places, cases)
    sagittal = norm(maps, Places(["sagittal"] * len(maps), places.positions))
    torch.testing.assert_close(sagittal, (maps - maps.mean()) / maps.std(), rtol=0.1, atol=0.1)


def test_size_of_the_slice_does_not_matter() -> None:
    maps, places, cases = volume_like(6)
    larger = torch.nn.functional.interpolate(maps, scale_factor=3, mode="nearest")
    torch.testing.assert_close(fitted(larger, places, cases).mean, fitted(maps, places, cases).mean)


def test_maps_that_never_change_give_finite_values() -> None:
    flat = torch.full((4, 1, SIZE, SIZE), 2.7)
    norm = fitted(flat, None, list("abcd"))
    torch.testing.assert_close(norm(flat), torch.zeros_like(flat))
    assert norm(2 * flat).amax() < 10


def test_no_foreground_is_an_error() -> None:
    moments = moments_of(torch.ones(1, 1, SIZE, SIZE), None, ["a"], torch.zeros(1, 1, SIZE, SIZE))
    assert moments.is_empty
    with pytest.raises(ValueError, match="needs maps of normals with a foreground; got none"):
        PositionNorm().fit([moments])


def test_a_lone_image_is_not_blurred() -> None:
    maps = volume_like(1)[0]
    assert blur_through_slices(maps, None, 0.1) is maps
    one = Places(["axial"], torch.tensor([0.5]))
    torch.testing.assert_close(blur_through_slices(maps[:1], one, 0.1), maps[:1])


def test_the_blur_is_measured_by_height_not_by_number() -> None:
    maps, places, _ = volume_like(1, n_slices=21)
    every_other = Places(places.planes[::2], places.positions[::2])
    smooth = torch.linspace(0, 1, 21).view(-1, 1, 1, 1).square().expand(maps.shape)
    fine = blur_through_slices(smooth, places, 0.1)
    coarse = blur_through_slices(smooth[::2], every_other, 0.1)
    torch.testing.assert_close(fine[::2][2:-2], coarse[2:-2], rtol=0.02, atol=0.01)


def test_before_normals_are_known_every_map_is_zero() -> None:
    maps, places, _ = volume_like(2)
    norm = PositionNorm()
    assert norm.is_known
    norm.set_unknown()
    assert not norm.is_known
    assert norm(maps, places).abs().max() < 1e-20
    norm.reset()
    assert norm.is_known
    assert torch.equal(norm(maps, places), maps)

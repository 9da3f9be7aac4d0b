from typing import Any

import pytest
import torch
from torch import Tensor

from aeflow_monai.data.slice_dataset import SliceDataset
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.inferer import SlicedInferer, ViewerInferer
from aeflow_monai.engine.saliency import MapScorer
from aeflow_monai.geometry import Places
from aeflow_monai.network.aeflow import AEFlow
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.score.calibration import calibrate
from aeflow_monai.score.position import PositionNorm
from aeflow_monai.score.scoring import AnomalyScorer
from aeflow_monai.score.position import PositionMoments, blur_through_slices
from aeflow_monai.score.stack import foreground_of

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
        place = None if places is None else Places(places.planes[one], places.heights[one])
        moments.add(maps[one], counted[one], place, case)
    return moments


def fitted(*args: Any, **options: Any) -> PositionNorm:
    norm = PositionNorm()
    norm.fit([moments_of(*args, **options)])
    return norm


def test_before_it_is_fitted_it_changes_nothing() -> None:
    maps, places, _ = volume_like(2)
    assert torch.equal(PositionNorm()(maps, places), maps)


def test_what_is_odd_in_all_normals_is_no_longer_odd() -> None:
    norm = fitted(*volume_like(20))
    maps, places, _ = volume_like(20, seed=1)  # others
    found = norm(maps, places)
    for part in (found[..., :8], found[..., -8:], found[places.heights < 0.2], found[places.heights > 0.8]):
        assert part.mean().item() == pytest.approx(0, abs=0.3)
        assert part.std().item() == pytest.approx(1, abs=0.15)
    # while before the left and the top stood out
    assert maps[..., :8].mean() > maps[..., -8:].mean() + 2
    spot = maps.clone()
    spot[..., 16, 20] += 20
    torch.testing.assert_close(norm(spot, places) > found + 5, spot > maps + 1)


def test_planes_do_not_mix() -> None:
    maps, places, cases = volume_like(6)
    both = Places(["axial", "coronal"] * (len(maps) // 2), places.heights)
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


def test_a_place_that_no_normal_has_is_compared_with_what_is_usual_anywhere() -> None:
    maps, places, cases = volume_like(6)
    norm = fitted(maps, places, cases)
    sagittal = norm(maps, Places(["sagittal"] * len(maps), places.heights))
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


def finished(scorer: AnomalyScorer, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Map and scores of a volume."""
    measured = scorer.measure(scorer.aeflow(batch["image"]), batch["image"])
    return scorer.finish(*measured, foreground_of(batch["image"]), Places(batch["axis"], batch["height"]))


class TestCalibration:
    @staticmethod
    def a_scorer() -> AnomalyScorer:
        torch.manual_seed(0)
        return AnomalyScorer(AEFlow(Encoder(), n_steps=2), slice_shares=[0.1, 1.0]).eval()

    @staticmethod
    def batches(n_cases: int, n_slices: int = 5) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(n_cases)
        coarse = torch.randn(n_cases * n_slices, 1, 8, 8, generator=generator)
        images = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").sigmoid()
        images[..., :16] = 0.5  # the left of all of them is flat, which the network finds easy or hard
        return [
            {
                "image": images[start : start + n_slices],
                "case": [f"case_{start}"] * n_slices,
                "axis": ["axial"] * n_slices,
                "height": torch.linspace(0, 1, n_slices),
            }
            for start in range(0, len(images), n_slices)
        ]

    def test_maps_of_new_normals_are_standard_everywhere(self) -> None:
        scorer = self.a_scorer()
        calibrate(scorer, self.batches(12))
        with torch.no_grad():
            found = torch.cat([finished(scorer, batch)["anomaly_map"] for batch in self.batches(11)])
        for part in (found[..., :12], found[..., 28:]):
            assert part.mean().item() == pytest.approx(0, abs=0.35)
            assert part.std().item() == pytest.approx(1, abs=0.3)

    def test_thresholds_hold_for_new_normals_of_few_cases(self) -> None:
        """Compared with themselves, the maps of few cases would be too small, and so would their threshold."""
        scorer, new = self.a_scorer(), self.batches(40)
        calibrate(scorer, self.batches(5), specificity=0.8)
        with torch.no_grad():
            scores = torch.cat([finished(scorer, batch)["slice_scores"] for batch in new])
        assert (scores <= scorer.slice_threshold).float().mean() >= 0.7

    def test_places_count_if_images_lie_alike(self) -> None:
        alike, any_way_round = self.batches(8), self.batches(8)
        for number, batch in enumerate(any_way_round):
            batch["image"] = batch["image"].roll(7 * number, dims=3).rot90(number, dims=(2, 3))
        scorer, other = self.a_scorer(), self.a_scorer()
        calibrate(scorer, alike)
        calibrate(other, any_way_round)
        assert len(scorer.position.mean[0, 16].unique()) > 100
        assert len(other.position.mean[0, 16].unique()) == 1

    def test_one_case_is_enough_but_tells_of_no_place(self) -> None:
        scorer = self.a_scorer()
        calibrate(scorer, self.batches(1))
        assert len(scorer.position.mean.unique()) == 1
        assert all(torch.isfinite(buffer).all() for buffer in scorer.buffers() if buffer.is_floating_point())

    def test_black_images_leave_it_alone(self) -> None:
        scorer = self.a_scorer()
        calibrate(scorer, self.batches(3))  # of which nothing may be left
        calibrate(scorer, [{"image": torch.zeros(2, 1, 64, 64), "case": ["a", "b"]}])
        assert torch.equal(scorer.position.mean, torch.zeros_like(scorer.position.mean))

    def test_a_failure_leaves_it_as_it_was(self) -> None:
        scorer = self.a_scorer()
        calibrate(scorer, self.batches(3))
        before = {name: buffer.clone() for name, buffer in scorer.position.state_dict().items()}
        bad = self.batches(4)
        bad[-1]["image"] = bad[-1]["image"] * float("nan")
        with pytest.raises(ValueError, match="holds NaN"):
            calibrate(scorer, bad)
        assert all(torch.equal(scorer.position.state_dict()[name], value) for name, value in before.items())

    def test_switched_off_maps_stay_as_they_were(self) -> None:
        torch.manual_seed(0)
        scorer = AnomalyScorer(AEFlow(Encoder(), n_steps=2), by_position=False).eval()
        batches = self.batches(3)
        calibrate(scorer, batches)
        image = batches[0]["image"]
        with torch.no_grad():
            low = scorer(image, Places(["axial"] * 5, torch.zeros(5)))
            assert torch.equal(low, scorer(image))


class TestVolumes:
    """What calibration knows of a slice is what evaluation, inference and viewers know of it."""

    slicer = Slicer(["axial", "coronal", "sagittal"], image_size=[64, 64], min_foreground=0.05)

    @staticmethod
    def volume() -> Tensor:
        volume = torch.zeros(1, 40, 36, 20)
        volume[:, 6:34, 5:30, 3:17] = torch.rand(1, 28, 25, 14, generator=torch.Generator().manual_seed(0))
        return volume

    def test_a_slice_has_one_height_in_training_and_inference(self) -> None:
        lesion = torch.zeros(1, 40, 36, 20)
        lesion[:, 10:14, 10:14, 5:8] = 1
        item = {"image": self.volume(), "mask": lesion, "case": "a", "label": 1}
        normal = SliceDataset([{**item, "label": 0}], lambda read: read, self.slicer)
        beside = SliceDataset([item], lambda read: read, self.slicer)
        seen: dict[tuple[str, float], int] = {}

        def network(slices: Tensor, places: Places) -> Tensor:
            for plane, height in zip(places.planes, places.heights.tolist(), strict=True):
                seen[plane, round(height, 5)] = seen.get((plane, round(height, 5)), 0) + 1
            return slices

        SlicedInferer(self.slicer, batch_size=3)(self.volume()[None], network)
        heights = {(e["axis"], e["slice"]): round(e["height"], 5) for e in normal.index}
        assert seen == {(plane, height): 1 for (plane, _), height in heights.items()}
        # a slice's height does not change because its neighbours hold a lesion
        assert 0 < len(beside) < len(normal)
        assert all(heights[e["axis"], e["slice"]] == round(e["height"], 5) for e in beside.index)

    def test_maps_and_scores_are_those_of_the_whole_stack(self) -> None:
        torch.manual_seed(0)
        scorer = AnomalyScorer(AEFlow(Encoder(), n_steps=2), slice_shares=[0.1, 1.0], slice_sigma=0.1).eval()
        scorer.position.mean.copy_(torch.randn(scorer.position.mean.shape))
        scorer.position.std.uniform_(0.5, 2)
        scorer.usual_dissimilarity.mean.copy_(torch.linspace(0, 5, 32).view(1, 32, 1, 1))  # the higher, the easier
        for threshold in ("map", "slice", "case"):
            scorer.get_buffer(f"{threshold}_threshold").fill_(1.0)
        volume, slicer = self.volume(), Slicer(["axial"], image_size=[64, 64], fit="pad", min_foreground=0.05)
        chosen = slicer.chosen(volume, "axial")
        slices, places = slicer.slices(volume, "axial", chosen), slicer.places(chosen, "axial")
        with torch.no_grad():
            measured = scorer.measure(scorer.aeflow(slices), slices)
            expected = scorer.finish(*measured, foreground_of(slices), places)
            alone = scorer(slices, places)
            found = SlicedInferer(slicer, batch_size=3)(volume[None], MapScorer(scorer))
            in_viewer = ViewerInferer(slicer, batch_size=5)(volume[None], scorer)
        assert not torch.allclose(expected["anomaly_map"], alone, atol=0.1)  # neighbours count
        ease = scorer.usual_dissimilarity.mean[0, :, 0, 0].max() * places.heights - measured.dissimilarity
        torch.testing.assert_close(expected["ease"], ease, rtol=1e-4, atol=1e-4)
        maps_alone = scorer.slice_scores(expected["anomaly_map"], torch.zeros(len(ease)))
        torch.testing.assert_close(expected["slice_scores"] - maps_alone, 2 * (ease - 1.5).clamp_min(0))
        for output in (found, in_viewer):
            assert isinstance(output, dict)
            torch.testing.assert_close(
                output["slice_scores_axial"][0, chosen], expected["slice_scores"], rtol=1e-4, atol=1e-4
            )
            torch.testing.assert_close(output["ease_axial"][0, chosen], ease, rtol=1e-4, atol=1e-4)
            stack = slicer.slices(output["anomaly_map"][0], "axial", chosen)[..., 12:52, 14:50]
            torch.testing.assert_close(stack, expected["anomaly_map"][..., 12:52, 14:50], rtol=1e-4, atol=1e-4)
        assert set(found) == {
            "anomaly_map", "reconstruction", "residual", "log_likelihood", "slice_scores_axial", "ease_axial"
        }  # fmt: skip


def test_a_lone_image_is_not_blurred() -> None:
    maps = volume_like(1)[0]
    assert blur_through_slices(maps, None, 0.1) is maps
    one = Places(["axial"], torch.tensor([0.5]))
    torch.testing.assert_close(blur_through_slices(maps[:1], one, 0.1), maps[:1])


def test_the_blur_is_measured_by_height_not_by_number() -> None:
    maps, places, _ = volume_like(1, n_slices=21)
    every_other = Places(places.planes[::2], places.heights[::2])
    smooth = torch.linspace(0, 1, 21).view(-1, 1, 1, 1).square().expand(maps.shape)
    fine = blur_through_slices(smooth, places, 0.1)
    coarse = blur_through_slices(smooth[::2], every_other, 0.1)
    torch.testing.assert_close(fine[::2][2:-2], coarse[2:-2], rtol=0.02, atol=0.01)


def test_outside_of_the_tissue_nothing_is_anomalous() -> None:
    scorer = AnomalyScorer(AEFlow(Encoder(weights="random"), n_steps=1), level_weight=1.0)
    foreground = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    foreground[0, :, 2:7, 2:7] = True
    foreground[0, :, 4, 4] = False  # a hole belongs to the tissue; the second image is black, and counts as it is
    found = scorer.standardised(torch.full((2, 1, 8, 8), 3.0), foreground)
    assert (found[0, 0, 2:7, 2:7] == 3).all()
    assert found[0].sum() == 25 * 3
    assert (found[1] == 3).all()
    assert (scorer.standardised(torch.full((2, 1, 8, 8), -3.0), foreground) == -3).all()

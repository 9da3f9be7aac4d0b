import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from aeflow_monai import Model
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.engine.inference.inferer import SlicedInferer
from aeflow_monai.geometry import Places
from aeflow_monai.network.aeflow import AEFlow
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.score.score import Score

PLANES = ("axial", "coronal", "sagittal")
SHAPE = (12, 16, 24)  # X to posterior, Y to left, Z to superior
COUNT = {"axial": 24, "coronal": 12, "sagittal": 16}


def volume_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 0.1 + 0.9 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def identity(slices: Tensor, places: Places) -> Tensor:
    return slices


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads that torch computes with."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Network:
    """Maps and numbers of slices, each of which depends on its own slice only; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, slices: Tensor, places: Places) -> dict[str, Tensor]:
        self.calls.append(len(slices))
        means = slices.mean(dim=(1, 2, 3))
        return {
            "double": 2 * slices,
            "minus": 1 - slices.mean(dim=1, keepdim=True),
            "scores": means,
            "halves": means / 2,
        }


class TestSlicedInferer:
    @pytest.mark.parametrize("axes", [c for n in (1, 2, 3) for c in itertools.permutations(PLANES, n)])
    def test_a_network_that_gives_its_slices_gives_the_volume(self, axes: tuple[str, ...]) -> None:
        inferer = SlicedInferer(Slicer(axes, image_size=[32, 32], fit="pad"), batch_size=5)
        volume = volume_of((1, 2, *SHAPE))
        found = inferer(volume, identity)
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, volume)

    @pytest.mark.parametrize("fit", ["pad", "resize"])
    def test_maps_and_numbers_of_a_dictionary(self, fit: str) -> None:
        inferer = SlicedInferer(Slicer(["axial", "coronal"], image_size=[32, 32], fit=fit))
        volume = torch.ones(1, 3, *SHAPE) * torch.linspace(0, 1, 24)  # brighter to the top
        found = inferer(volume, Network())
        assert isinstance(found, dict)
        assert {name: tuple(value.shape) for name, value in found.items()} == {
            "double": (1, 3, *SHAPE),
            "minus": (1, 1, *SHAPE),
            "scores_axial": (1, 24),
            "scores_coronal": (1, 12),
            "halves_axial": (1, 24),
            "halves_coronal": (1, 12),
        }
        torch.testing.assert_close(found["double"], 2 * volume, rtol=0, atol=0.03)
        torch.testing.assert_close(found["minus"], 1 - volume[:, :1], rtol=0, atol=0.03)
        share = 12 * 16 / 32**2 if fit == "pad" else 1
        torch.testing.assert_close(found["scores_axial"][0], share * torch.linspace(0, 1, 24), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["halves_coronal"], found["scores_coronal"] / 2)

    @pytest.mark.parametrize("several", [False, True])
    def test_skipped_slices_are_0_in_maps_and_nan_in_numbers(self, several: bool) -> None:
        axes = PLANES if several else ("axial",)
        volume = torch.zeros(1, 1, 10, 10, 6)
        volume[..., 2:8, 2:8, 1:4] = 0.5
        slicer = Slicer(axes, image_size=[32, 32], fit="pad", min_foreground=0.05)
        found = SlicedInferer(slicer)(
            volume, lambda s, places: {"map": torch.ones_like(s), "score": torch.ones(len(s))}
        )
        assert isinstance(found, dict)
        inside = {"axial": (6, range(1, 4)), "coronal": (10, range(2, 8)), "sagittal": (10, range(2, 8))}
        for plane in axes:
            count, kept = inside[plane]
            expected = torch.full((1, count), torch.nan)
            expected[0, list(kept)] = 1
            torch.testing.assert_close(found[f"score_{plane}"], expected, equal_nan=True)
        expected = torch.zeros(1, 1, 10, 10, 6)
        expected[..., 1:4] = 1
        if several:
            expected[..., 2:8, :, :] = 1
            expected[..., :, 2:8, :] = 1
        assert torch.equal(found["map"], expected)

    def test_a_plane_that_is_skipped_as_a_whole_is_nan_and_does_not_count(self) -> None:
        slicer = Slicer(PLANES, image_size=[32, 32], fit="pad", slice_range=[30, 40])  # there is no axial slice 30
        volume = volume_of((1, 1, *SHAPE))
        network = Network()
        found = SlicedInferer(slicer)(volume, network)
        assert isinstance(found, dict)
        assert sum(network.calls) == 12 + 16
        assert 0 not in network.calls
        assert found["scores_axial"].isnan().all()
        assert found["scores_axial"].shape == (1, 24)
        assert not found["scores_coronal"].isnan().any()
        torch.testing.assert_close(found["double"], 2 * volume)

    def test_each_voxel_gets_the_mean_over_the_planes_that_saw_it(self) -> None:
        sides = {(12, 16): 100.0, (24, 16): 1.0, (24, 12): 10.0}  # what is said of axial, coronal, sagittal slices
        volume = torch.zeros(1, 1, *SHAPE)
        volume[..., 6:, :, :] = 1  # the posterior half is seen by all planes, the anterior one not by coronal ones

        def network(slices: Tensor, places: Places) -> Tensor:
            # without padding, the size says the plane
            return torch.full_like(slices, sides[slices.shape[2], slices.shape[3]])

        found = {}
        for plane, size in (("axial", (12, 16)), ("coronal", (24, 16)), ("sagittal", (24, 12))):
            one = SlicedInferer(Slicer([plane], size, min_foreground=0.1))(volume, network)
            assert isinstance(one, Tensor)
            found[plane] = one
        assert (found["axial"] == 100).all()
        assert (found["sagittal"] == 10).all()
        assert (found["coronal"][..., 6:, :, :] == 1).all()
        assert (found["coronal"][..., :6, :, :] == 0).all()

        marked = torch.zeros_like(volume)

        def by_brightness(slices: Tensor, places: Places) -> Tensor:
            return torch.full_like(slices, 100 if slices.max() == 1 else 1)

        marked[..., 6:, :, :] = 0.5
        marked[..., 6:, :, 5] = 1
        slicer = Slicer(["axial", "coronal"], (32, 32), fit="pad", min_foreground=0.1)
        both = SlicedInferer(slicer, batch_size=1)(marked, by_brightness)
        assert isinstance(both, Tensor)
        # every coronal slice holds the bright row, so says 100; of the axial ones only slice 5 does
        assert (both[..., :6, :, 5] == 100).all()  # seen by axial slices alone
        assert (both[..., :6, :, 4] == 1).all()
        assert (both[..., 6:, :, 5] == 100).all()
        assert (both[..., 6:, :, 4] == 50.5).all()

    @pytest.mark.parametrize("axes", [("axial",), PLANES])
    @pytest.mark.parametrize("cores", [1, 2])  # of which each has half of the slices
    def test_nothing_depends_on_the_number_of_slices_per_call(
        self, axes: tuple[str, ...], cores: int, threads: Callable[[int], None]
    ) -> None:
        threads(cores)
        volume = volume_of((1, 1, *SHAPE))
        volume[..., 20:] = 0
        conv = torch.nn.Conv2d(1, 1, 5, padding=2)
        found = []
        for batch_size in (1, 4, 7, 1000):
            network = Network()
            inferer = SlicedInferer(Slicer(axes, (32, 32), "pad", min_foreground=0.1), batch_size)
            with torch.no_grad():
                found.append(inferer(volume, lambda slices, places, network=network: network(conv(slices), places)))
            counts = [20, 12, 16][: len(axes)]
            size = -(-batch_size // cores)
            expected = [min(size, n - start) for n in counts for start in range(0, n, size)]
            if cores > 1:  # whichever of two threads comes first
                network.calls.sort()
                expected.sort()
            assert network.calls == expected
        for other in found[1:]:
            assert other.keys() == found[0].keys()
            for name, value in found[0].items():
                torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6, equal_nan=True)

    @pytest.mark.parametrize("axes", [("axial",), PLANES])
    def test_two_threads_give_what_one_does(self, axes: tuple[str, ...], threads: Callable[[int], None]) -> None:
        volume, found = volume_of((1, 1, *SHAPE)), []
        inferer = SlicedInferer(Slicer(axes, (32, 32), "pad"), batch_size=2)
        for cores in (1, 2):
            threads(cores)
            seen: list[tuple[int, int, bool]] = []

            def network(slices: Tensor, places: Places, seen: list[tuple[int, int, bool]] = seen) -> dict[str, Tensor]:
                seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
                time.sleep(0.001)  # for the other thread to have its turn
                return {"map": slices**2, "score": slices.amax(dim=(1, 2, 3))}

            with torch.no_grad():
                found.append(inferer(volume, network))
            assert (len({thread for thread, _, _ in seen}) > 1) == (cores > 1)
            assert {(count, grad) for _, count, grad in seen} == {(1, False)}
            assert torch.get_num_threads() == cores
        assert found[0].keys() == found[1].keys()
        for name, value in found[0].items():
            assert torch.equal(found[1][name], value)

    def test_gradients_go_through_one_thread(self, threads: Callable[[int], None]) -> None:
        threads(2)
        volume = volume_of((1, 1, *SHAPE)).requires_grad_()
        found = SlicedInferer(Slicer(image_size=[32, 32], fit="pad"))(volume, lambda slices, places: slices**2)
        assert isinstance(found, Tensor)
        found.sum().backward()
        torch.testing.assert_close(volume.grad, 2 * volume.detach())

    def test_an_error_of_a_thread_is_raised(self, threads: Callable[[int], None]) -> None:
        threads(2)
        volume = volume_of((1, 1, *SHAPE))
        with torch.no_grad(), pytest.raises(RuntimeError, match="channels"):
            SlicedInferer(Slicer(image_size=[32, 32]))(volume, lambda slices, places: torch.nn.Conv2d(3, 1, 1)(slices))
        assert torch.get_num_threads() == 2

    def test_a_picture_is_one_axial_slice_whatever_the_planes(self) -> None:
        network = Network()
        picture = torch.zeros(1, 1, 40, 30, 1)
        found = SlicedInferer(Slicer(PLANES, [32, 32], min_foreground=0.9, slice_range=[5, 6]))(picture, network)
        assert isinstance(found, dict)
        assert {name: tuple(value.shape) for name, value in found.items()} == {
            "double": (1, 1, 40, 30, 1),
            "minus": (1, 1, 40, 30, 1),
            "scores_axial": (1, 1),
            "halves_axial": (1, 1),
        }
        assert network.calls == [1]

    def test_maps_lie_where_the_volume_lies(self) -> None:
        affine = torch.tensor([[0, -1.5, 0, 3], [2, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]], dtype=torch.float64)
        volume = MetaTensor(volume_of((1, 1, *SHAPE)), affine=affine, meta={"filename_or_obj": "a.nii"})
        seen: list[type] = []

        def network(slices: Tensor, places: Places) -> Tensor:
            seen.append(type(slices))
            return slices

        found = SlicedInferer(Slicer(image_size=[32, 32], fit="pad"))(volume, network)
        assert isinstance(found, MetaTensor)
        assert torch.equal(found.affine, affine)
        assert found.meta["filename_or_obj"] == "a.nii"
        assert found.applied_operations == volume.applied_operations
        assert set(seen) == {Tensor}  # the network sees none of it

    def test_further_arguments_reach_the_network(self) -> None:
        found = SlicedInferer(Slicer(image_size=[32, 32], fit="pad"))(
            torch.ones(1, 1, *SHAPE), lambda slices, places, a, b: a * slices + b, 3, b=4
        )
        assert (found == 7).all()

    def test_the_volume_stays_as_it_was(self) -> None:
        volume = volume_of((1, 1, *SHAPE))
        before = volume.clone()
        SlicedInferer(Slicer(PLANES, [32, 32]))(volume, lambda slices, places: slices.mul_(2))
        assert torch.equal(volume, before)

    @pytest.mark.parametrize("shape", [(2, 1, 8, 8, 4), (1, 1, 8, 8), (1, 8, 8), (1, 1, 8, 8, 4, 2)])
    def test_other_shapes_are_named(self, shape: tuple[int, ...]) -> None:
        message = (
            rf"one volume \(1, C, X, Y, Z\); got \({', '.join(map(str, shape))}\)\. Set the loader's batch_size to 1"
        )
        with pytest.raises(ValueError, match=message):
            SlicedInferer(Slicer())(torch.zeros(shape), identity)

    def test_a_volume_without_a_slice_to_process_is_named(self) -> None:
        message = (
            r"No slice .* along axial, sagittal none of the volume \(8, 9, 4\) has 5% .*lower slicer#min_foreground"
        )
        network = Network()
        with pytest.raises(ValueError, match=message):
            SlicedInferer(Slicer(["axial", "sagittal"], min_foreground=0.05))(torch.zeros(1, 1, 8, 9, 4), network)
        assert network.calls == []

    def test_a_volume_outside_the_slice_range_is_not_scored_by_the_other_planes_alone(self, trained: Path) -> None:
        slicer = Slicer(["axial", "coronal"], [64, 64], slice_range=[40, 50])
        with pytest.raises(ValueError, match=r"No axial slice of the volume .* within the slice range \[40, 50\] has"):
            SlicedInferer(slicer)(volume_of((1, 1, 64, 64, 20)), Model(trained).detector)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_numbers_that_are_not_finite_are_no_skipped_slices(self, value: float) -> None:
        volume = volume_of((1, 1, *SHAPE))
        volume[..., 7] = value
        with pytest.raises(ValueError, match=r"scores of axial slices are not finite: the image holds NaN, infinite"):
            SlicedInferer(Slicer(image_size=[32, 32]))(volume, Network())

    def test_slices_per_call_have_to_be_some(self) -> None:
        with pytest.raises(ValueError, match=r"batch_size has to be 1 or more; got 0"):
            SlicedInferer(Slicer(), batch_size=0)


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Not trained, with thresholds as if it were calibrated."""
    torch.manual_seed(0)
    score = Score(3, top_fractions=[0.1, 1.0], case_top_fraction=0.4, slice_sigma=0.1)
    detector = Detector(AEFlow(Encoder(weights="random"), n_steps=1, hidden_channels=4), score).eval()
    for number, name in enumerate(("map_threshold", "slice_threshold", "case_threshold")):
        score.get_buffer(name).fill_(number)
    return detector


class TestDetector:
    """A detector over a volume; `tests/engine/test_detector.py` compares it with the whole stack."""

    def infer(self, detector: Detector, axes: Sequence[str] = ("axial",), batch_size: int = 4) -> dict[str, Tensor]:
        volume = volume_of((1, 1, *SHAPE))
        volume[..., 20:] = 0
        slicer = Slicer(axes, image_size=[32, 32], fit="pad", min_foreground=0.1)
        with torch.no_grad():
            found = SlicedInferer(slicer, batch_size)(volume, detector)
        assert isinstance(found, dict)
        return found

    def test_the_score_of_the_case_is_that_of_all_its_slices(self, detector: Detector) -> None:
        found = self.infer(detector, PLANES)
        by_plane = {plane: found[f"slice_scores_{plane}"][0] for plane in PLANES}
        assert {plane: len(scores) for plane, scores in by_plane.items()} == COUNT
        assert by_plane["axial"].isnan().tolist() == [False] * 20 + [True] * 4
        assert found["ease_axial"].isnan().tolist() == found["slice_scores_axial"].isnan().tolist()
        assert found["anomaly_score"].shape == (1,)
        assert found["anomaly_score"].item() == pytest.approx(float(detector.score.case_score(by_plane)))

    def test_the_thresholds_are_the_models(self, detector: Detector) -> None:
        found = self.infer(detector)
        names = ("map_threshold", "slice_threshold", "case_threshold")
        assert [found[name].tolist() for name in names] == [[0.0], [1.0], [2.0]]

    def test_nothing_depends_on_the_number_of_slices_per_call_or_of_threads(
        self, detector: Detector, threads: Callable[[int], None]
    ) -> None:
        expected = self.infer(detector, PLANES, batch_size=1000)
        for cores, batch_size in ((1, 3), (2, 1), (2, 7)):
            threads(cores)
            found = self.infer(detector, PLANES, batch_size)
            assert list(found) == list(expected)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, equal_nan=True)

    def test_a_detector_in_the_middle_of_a_training_is_refused(self, detector: Detector) -> None:
        fresh = Detector(detector.network, Score(3)).eval()
        with pytest.raises(ValueError, match=r"The model is not calibrated\. Finish its training with --resume"):
            self.infer(fresh)

    def test_a_method_of_another_kind_has_no_thresholds(self) -> None:
        found = SlicedInferer(Slicer(image_size=[32, 32]))(volume_of((1, 1, *SHAPE)), Network())
        assert set(found) == {"double", "minus", "scores_axial", "halves_axial"}

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.inferer import SlicedInferer
from aeflow_monai.geometry import Places

PLANES = ("axial", "coronal", "sagittal")
# X to posterior, Y to left, Z to superior
ANTERIOR, POSTERIOR, RIGHT, LEFT, INFERIOR, SUPERIOR = 1, 10, 2, 13, 3, 20
SHAPE = (12, 16, 24)
COUNT = {"coronal": 12, "sagittal": 16, "axial": 24}


def volume_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 0.1 + 0.9 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def smooth_volume(shape: tuple[int, int, int]) -> Tensor:
    """Bends that a few pixels resolve."""
    x, y, z = (torch.linspace(0, 3, n) for n in shape)
    return (2 + torch.sin(x[:, None, None]) + torch.cos(y[:, None] + z))[None] / 4


def identity(slices: Tensor, places: Places) -> Tensor:
    return slices


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads that torch computes with."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class TestSlicesAndPaste:
    @pytest.mark.parametrize("plane", PLANES)
    @pytest.mark.parametrize("size", [(32, 32), (25, 27), (8, 8)])  # wider, odd, narrower than the slices
    @pytest.mark.parametrize("channels", [1, 3])
    def test_pad_and_paste_is_the_identity(self, plane: str, size: tuple[int, int], channels: int) -> None:
        slicer, volume = Slicer(image_size=size, fit="pad"), volume_of((channels, *SHAPE))
        indices = torch.arange(COUNT[plane])
        back = torch.zeros_like(volume)
        slicer.paste(slicer.slices(volume, plane, indices), back, plane, indices)
        assert torch.equal(back, volume)

    @pytest.mark.parametrize("plane", PLANES)
    @pytest.mark.parametrize("size", [(32, 32), (48, 40), (16, 24)])
    def test_resize_and_paste_is_the_identity_but_for_interpolation(self, plane: str, size: tuple[int, int]) -> None:
        slicer, volume = Slicer(image_size=size), smooth_volume(SHAPE)
        indices = torch.arange(COUNT[plane])
        back = torch.zeros_like(volume)
        slicer.paste(slicer.slices(volume, plane, indices), back, plane, indices)
        torch.testing.assert_close(back, volume, rtol=0, atol=0.05)
        assert (back - volume).abs().mean() < 0.01

    @pytest.mark.parametrize("plane", PLANES)
    @pytest.mark.parametrize("fit", ["pad", "resize"])
    def test_each_slice_goes_to_its_own_place_and_adds_to_what_is_there(self, plane: str, fit: str) -> None:
        slicer, volume = Slicer(image_size=[32, 32], fit=fit), torch.ones(1, *SHAPE)
        indices = torch.tensor([5, 2])
        maps = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 32, 32)
        slicer.paste(maps, volume, plane, indices)
        dimension = 1 + {"coronal": 0, "sagittal": 1, "axial": 2}[plane]
        expected = torch.ones(COUNT[plane])
        expected[5], expected[2] = 3, 4
        for dim in range(1, 4):
            if dim != dimension:
                assert volume.std(dim=dim).max() < 1e-6
        torch.testing.assert_close(volume.mean(dim=[d for d in range(4) if d != dimension]), expected)

    def test_maps_may_have_another_number_of_channels_than_the_image(self) -> None:
        slicer, volume = Slicer(image_size=[32, 32], fit="pad"), torch.zeros(2, *SHAPE)
        slicer.paste(torch.ones(1, 2, 32, 32), volume, "axial", torch.tensor([7]))
        assert volume.sum() == 2 * 12 * 16

    @pytest.mark.parametrize(
        ("own", "size"),  # of image_size (40, 24): where larger the next multiple of 32, where smaller image_size
        [((40, 24), (40, 24)), ((39, 25), (40, 32)), ((41, 24), (64, 24)), ((65, 64), (96, 64)), ((1, 1), (40, 24))],
    )
    def test_size_of_padded_slices(self, own: tuple[int, int], size: tuple[int, int]) -> None:
        slicer = Slicer(image_size=[40, 24], fit="pad")
        assert slicer.slices(torch.ones(1, *own, 3), "axial", torch.arange(3)).shape == (3, 1, *size)

    def test_padding_lies_around_the_centre_by_eye(self) -> None:
        found = Slicer(image_size=[5, 6], fit="pad").slices(torch.ones(1, 2, 4, 1), "axial", torch.tensor([0]))
        expected = torch.zeros(5, 6)
        expected[1:3, 1:5] = 1  # the odd row goes below
        assert torch.equal(found[0, 0], expected)

    def test_slices_are_copies(self) -> None:
        volume = volume_of((1, 8, 8, 3))
        before = volume.clone()
        for fit in ("pad", "resize"):
            Slicer(image_size=[8, 8], fit=fit).slices(volume, "axial", torch.arange(3)).zero_()
        assert torch.equal(volume, before)


class TestUpright:
    @pytest.mark.parametrize(
        ("plane", "index", "row", "column"),
        # the front, or the top of the head, is the first row; the patient's right, or the front, the first column
        [
            ("axial", SUPERIOR, ANTERIOR, RIGHT),
            ("axial", INFERIOR, POSTERIOR, LEFT),
            ("coronal", ANTERIOR, 24 - 1 - SUPERIOR, RIGHT),
            ("coronal", POSTERIOR, 24 - 1 - INFERIOR, LEFT),
            ("sagittal", RIGHT, 24 - 1 - SUPERIOR, ANTERIOR),
            ("sagittal", LEFT, 24 - 1 - INFERIOR, POSTERIOR),
        ],
    )
    def test_a_marker_is_where_a_radiologist_looks_for_it(self, plane: str, index: int, row: int, column: int) -> None:
        volume = torch.zeros(1, *SHAPE)
        volume[0, ANTERIOR, RIGHT, SUPERIOR] = 1
        volume[0, POSTERIOR, LEFT, INFERIOR] = 1
        size = {"axial": (12, 16), "coronal": (24, 16), "sagittal": (24, 12)}[plane]
        for fit in ("pad", "resize"):
            found = Slicer(image_size=size, fit=fit).slices(volume, plane, torch.arange(COUNT[plane]))
            assert found.shape == (COUNT[plane], 1, *size)
            assert found[index, 0, row, column] == 1
            assert found.sum() == 2

    def test_right_front_top_by_eye(self) -> None:
        volume = torch.zeros(1, 3, 3, 3)
        volume[0, 0, 0, 2] = 1
        picture = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]])
        slicer = Slicer(image_size=[3, 3])
        for plane, index in (("axial", 2), ("coronal", 0), ("sagittal", 0)):
            assert torch.equal(slicer.slices(volume, plane, torch.tensor([index]))[0, 0], picture), plane


class TestChosen:
    @pytest.mark.parametrize("plane", PLANES)
    @pytest.mark.parametrize(("least", "kept"), [(0.0, [0, 1, 2, 3]), (0.25, [1, 2, 3]), (0.26, [2, 3]), (1.0, [3])])
    def test_slices_with_enough_foreground(self, plane: str, least: float, kept: list[int]) -> None:
        axial = torch.zeros(1, 8, 8, 4)
        axial[:, :4, :4, 1] = 0.5  # a quarter
        axial[:, :4, :, 2] = 1e-6
        axial[..., 3] = 1
        volume = axial.movedim(3, {"coronal": 1, "sagittal": 2, "axial": 3}[plane])
        assert Slicer(min_foreground=least).chosen(volume, plane).tolist() == kept

    def test_foreground_counts_over_channels(self) -> None:
        volume = torch.zeros(2, 4, 4, 2)
        volume[0, ..., 1] = 1
        assert Slicer(min_foreground=0.5).chosen(volume, "axial").tolist() == [1]
        assert Slicer(min_foreground=0.51).chosen(volume, "axial").tolist() == []

    @pytest.mark.parametrize(
        ("span", "kept"),
        [((1, 10), range(10)), ((3, 5), [2, 3, 4]), ((10, 10), [9]), ((8, 99), [7, 8, 9]), ((11, 12), [])],
    )
    def test_span_counts_from_one_and_holds_both_ends(self, span: tuple[int, int], kept: Any) -> None:
        assert Slicer(span=span).chosen(torch.ones(1, 8, 8, 10), "axial").tolist() == list(kept)

    def test_span_is_of_the_first_plane_only(self) -> None:
        slicer, volume = Slicer(axes=["coronal", "axial"], span=[2, 3]), torch.ones(1, 6, 5, 4)
        assert slicer.chosen(volume, "coronal").tolist() == [1, 2]
        assert slicer.chosen(volume, "axial").tolist() == [0, 1, 2, 3]

    def test_span_and_foreground_hold_together(self) -> None:
        volume = torch.ones(1, 4, 4, 6)
        volume[..., 2] = 0
        assert Slicer(span=[2, 4], min_foreground=0.1).chosen(volume, "axial").tolist() == [1, 3]

    def test_a_single_slice_is_never_skipped(self) -> None:
        slicer = Slicer(axes=["coronal", "axial"], min_foreground=0.9, span=[3, 4])
        picture = torch.zeros(1, 8, 8, 1)
        assert slicer.axes_of(picture) == ("axial",)
        assert slicer.chosen(picture, "axial").tolist() == [0]
        assert slicer.axes_of(torch.zeros(1, 8, 8, 2)) == ("coronal", "axial")


class TestKinds:
    MASK = torch.zeros(1, 10, 8, 9)
    MASK[:, 2:6, 3, 4] = 1  # X 2 to 5, Y 3, Z 4
    MASK[:, 2, 3, 5] = 7  # any label; a single voxel of slice 5

    @pytest.mark.parametrize(
        ("plane", "spacing", "policy", "expected"),  # n normal, a abnormal, u unclear
        [
            ("axial", (1, 1, 1), {}, "nnnnaannn"),
            ("coronal", (1, 1, 1), {}, "nnaaaannnn"),
            ("sagittal", (1, 1, 1), {}, "nnnannnn"),
            ("axial", (1, 1, 1), {"normal_margin_mm": 1}, "nnnnaannn"),  # nearer than 1 mm
            ("axial", (1, 1, 1), {"normal_margin_mm": 1.01}, "nnnuaaunn"),
            ("axial", (1, 1, 1), {"normal_margin_mm": 99}, "uuuuaauuu"),
            # slices 4 mm apart: the margin is in mm, not in slices
            ("axial", (1, 1, 4), {"normal_margin_mm": 4}, "nnnnaannn"),
            ("axial", (1, 1, 4), {"normal_margin_mm": 5}, "nnnuaaunn"),
            ("axial", (4, 4, 1), {"normal_margin_mm": 3}, "nnuuaauun"),
            ("coronal", (3, 1, 1), {"normal_margin_mm": 4}, "nuaaaaunnn"),
            # 4 pixels and 1 pixel of 1 mm2, 6 mm2, 1.5 mm2
            ("axial", (1, 1, 9), {"min_lesion_mm2": 4}, "nnnnaunnn"),
            ("axial", (1, 1, 9), {"min_lesion_mm2": 4.1}, "nnnnuunnn"),
            ("axial", (2, 3, 9), {"min_lesion_mm2": 6}, "nnnnaannn"),
            ("axial", (2, 3, 0.1), {"min_lesion_mm2": 6.1}, "nnnnaunnn"),
            ("sagittal", (3, 9, 0.5), {"min_lesion_mm2": 7.5}, "nnnannnn"),
            ("coronal", (9, 3, 0.5), {"min_lesion_mm2": 3}, "nnauuunnnn"),
            # a lesion too small to count still keeps its neighbours from being normal
            ("axial", (1, 1, 1), {"min_lesion_mm2": 2, "normal_margin_mm": 1.5}, "nnnuauunn"),
        ],
    )
    def test_by_hand(self, plane: str, spacing: tuple[float, ...], policy: dict[str, float], expected: str) -> None:
        words = {"n": "normal", "a": "abnormal", "u": "unclear"}
        assert Slicer(**policy).kinds(self.MASK, plane, spacing) == [words[letter] for letter in expected]

    @pytest.mark.parametrize("margin", [0.0, 100.0])
    def test_without_lesion_all_is_normal(self, margin: float) -> None:
        slicer = Slicer(normal_margin_mm=margin, min_lesion_mm2=margin)
        assert slicer.kinds(torch.zeros(1, 4, 4, 3), "axial", (1, 1, 1)) == ["normal"] * 3

    def test_a_mask_of_another_size_is_named(self) -> None:
        message = r"mask of a\.nii has another size than its image: \(4, 4, 3\) and \(4, 4, 5\)\. Give the mask"
        with pytest.raises(ValueError, match=message):
            Slicer().kinds(torch.zeros(1, 4, 4, 3), "axial", (1, 1, 1), torch.zeros(2, 4, 4, 5), "a.nii")
        Slicer().kinds(torch.zeros(1, 4, 4, 3), "axial", (1, 1, 1), torch.zeros(2, 4, 4, 3), "a.nii")


class TestSlicerOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"axes": ["axial", "transversal"]},
                r"Unknown plane 'transversal' in axes: choose of \['axial', 'coronal'",
            ),
            ({"axes": []}, r"one or more different planes of .*; got \[\]"),
            ({"axes": ["axial", "axial"]}, r"one or more different planes of .*; got \['axial', 'axial'\]"),
            ({"fit": "crop"}, r"Unknown fit 'crop': choose one of \['resize', 'pad'\]"),
            ({"image_size": [128]}, r"image_size has to be two numbers, rows and columns; got \[128\]"),
            ({"image_size": [128, 0]}, r"image_size has to be two numbers, rows and columns; got \[128, 0\]"),
            ({"min_foreground": 5}, r"min_foreground .* in \[0, 1\]; got 5"),
            ({"min_foreground": -0.1}, r"min_foreground .* in \[0, 1\]; got -0\.1"),
            ({"span": [0, 5]}, r"first and the last slice, counted from 1; got \[0, 5\]"),
            ({"span": [6, 5]}, r"first and the last slice, counted from 1; got \[6, 5\]"),
            ({"span": [6]}, r"first and the last slice, counted from 1; got \[6\]"),
            ({"normal_margin_mm": -1}, r"have to be 0 or more; got -1, 0\.0"),
            ({"min_lesion_mm2": -2}, r"have to be 0 or more; got 0\.0, -2"),
        ],
    )
    def test_wrong_ones_are_named(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Slicer(**options)

    def test_policy_makes_the_same_slicer(self) -> None:
        slicer = Slicer(["sagittal", "axial"], [32, 64], "pad", 0.1, [2, 9], 5.0, 3.0)
        assert slicer.policy() == {
            "axes": ["sagittal", "axial"],
            "image_size": [32, 64],
            "fit": "pad",
            "min_foreground": 0.1,
            "span": [2, 9],
            "normal_margin_mm": 5.0,
            "min_lesion_mm2": 3.0,
        }
        assert Slicer(**slicer.policy()).policy() == slicer.policy()


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
        slicer = Slicer(PLANES, image_size=[32, 32], fit="pad", span=[30, 40])  # there is no axial slice 30
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
            assert sorted(network.calls) == sorted(expected)
            assert network.calls == expected or cores > 1
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
        found = SlicedInferer(Slicer(PLANES, [32, 32], min_foreground=0.9, span=[5, 6]))(picture, network)
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

    def test_a_volume_without_a_slice_to_look_at_is_named(self) -> None:
        message = (
            r"No slice to look at: along axial, sagittal none of the volume \(8, 9, 4\) has 5% .*Lower min_foreground"
        )
        network = Network()
        with pytest.raises(ValueError, match=message):
            SlicedInferer(Slicer(["axial", "sagittal"], min_foreground=0.05))(torch.zeros(1, 1, 8, 9, 4), network)
        assert network.calls == []

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_numbers_that_are_not_finite_are_no_skipped_slices(self, value: float) -> None:
        volume = volume_of((1, 1, *SHAPE))
        volume[..., 7] = value
        with pytest.raises(ValueError, match=r"scores of axial slices are not finite: the image holds NaN, infinite"):
            SlicedInferer(Slicer(image_size=[32, 32]))(volume, Network())

    def test_slices_per_call_have_to_be_some(self) -> None:
        with pytest.raises(ValueError, match=r"batch_size has to be 1 or more; got 0"):
            SlicedInferer(Slicer(), batch_size=0)

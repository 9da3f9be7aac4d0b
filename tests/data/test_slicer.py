from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from aeflow_monai.data.slicer import Slicer

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
        ("slice_range", "kept"),
        [((1, 10), range(10)), ((3, 5), [2, 3, 4]), ((10, 10), [9]), ((8, 99), [7, 8, 9]), ((11, 12), [])],
    )
    def test_slice_range_counts_from_one_and_holds_both_ends(self, slice_range: tuple[int, int], kept: Any) -> None:
        assert Slicer(slice_range=slice_range).chosen(torch.ones(1, 8, 8, 10), "axial").tolist() == list(kept)

    def test_slice_range_is_of_the_first_plane_only(self) -> None:
        slicer, volume = Slicer(axes=["coronal", "axial"], slice_range=[2, 3]), torch.ones(1, 6, 5, 4)
        assert slicer.chosen(volume, "coronal").tolist() == [1, 2]
        assert slicer.chosen(volume, "axial").tolist() == [0, 1, 2, 3]

    def test_slice_range_and_foreground_hold_together(self) -> None:
        volume = torch.ones(1, 4, 4, 6)
        volume[..., 2] = 0
        assert Slicer(slice_range=[2, 4], min_foreground=0.1).chosen(volume, "axial").tolist() == [1, 3]

    def test_a_single_slice_is_never_skipped(self) -> None:
        slicer = Slicer(axes=["coronal", "axial"], min_foreground=0.9, slice_range=[3, 4])
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
        affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
        case = {"image": torch.ones(2, 10, 8, 9), "lesion": MetaTensor(self.MASK, affine=affine)}
        assert Slicer(**policy).kinds(case, plane) == [words[letter] for letter in expected]

    @pytest.mark.parametrize("margin", [0.0, 100.0])
    def test_without_lesion_all_is_normal(self, margin: float) -> None:
        slicer = Slicer(normal_margin_mm=margin, min_lesion_mm2=margin)
        empty = {"image": torch.ones(1, 4, 4, 3), "lesion": torch.zeros(1, 4, 4, 3)}
        for label in ({}, {"label": 0}, {"label": 1}):
            assert slicer.kinds({**empty, **label}, "axial") == ["normal"] * 3

    @pytest.mark.parametrize("label", [{}, {"label": None}, {"label": 0}, {"label": 1}])
    def test_a_mask_says_more_than_a_label(self, label: dict[str, Any]) -> None:
        case = {"image": torch.ones(1, 10, 8, 9), "lesion": self.MASK, **label}
        assert Slicer().kinds(case, "sagittal").index("abnormal") == 3
        assert Slicer().kinds(case, "sagittal").count("normal") == 7

    @pytest.mark.parametrize(
        ("label", "kind"),
        [({}, "normal"), ({"label": None}, "normal"), ({"label": 0}, "normal"), ({"label": 1}, "abnormal")],
    )
    @pytest.mark.parametrize("mask", [{}, {"lesion": None}])
    def test_without_a_mask_the_label_tells(self, mask: dict[str, Any], label: dict[str, Any], kind: str) -> None:
        slicer = Slicer(normal_margin_mm=9, min_lesion_mm2=9)
        case = {"image": torch.ones(1, 4, 5, 3), **mask, **label}
        for plane, count in (("axial", 3), ("coronal", 4), ("sagittal", 5)):
            assert slicer.kinds(case, plane) == [kind] * count

    def test_a_mask_of_another_size_is_named(self) -> None:
        message = r"mask of a\.nii has another size than its image: \(4, 4, 3\) and \(4, 4, 5\)\. Give the mask"
        with pytest.raises(ValueError, match=message):
            Slicer().kinds({"image": torch.zeros(2, 4, 4, 5), "lesion": torch.zeros(1, 4, 4, 3)}, "axial", "a.nii")


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
            ({"slice_range": [0, 5]}, r"first and the last slice, counted from 1; got \[0, 5\]"),
            ({"slice_range": [6, 5]}, r"first and the last slice, counted from 1; got \[6, 5\]"),
            ({"slice_range": [6]}, r"first and the last slice, counted from 1; got \[6\]"),
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
            "slice_range": [2, 9],
            "normal_margin_mm": 5.0,
            "min_lesion_mm2": 3.0,
        }
        assert Slicer(**slicer.policy()).policy() == slicer.policy()

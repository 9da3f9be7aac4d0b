from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from aeflow_monai.geometry import (
    PLANES,
    Places,
    any_picture,
    check_affine,
    corner_distance,
    format_position,
    ras_affine,
    require_planes,
    stack_of,
    voxel_spacing,
)

AXCODES = "PLS"  # of volumes as the network sees them
OPPOSITE = {"P": "A", "L": "R", "S": "S"}
ENDS = {"A": "anterior", "P": "posterior", "R": "right", "L": "left", "I": "inferior", "S": "superior"}
SHAPE = (4, 5, 6)


def numbered(shape: tuple[int, ...] = (2, *SHAPE)) -> torch.Tensor:
    """A volume in which no two voxels are equal."""
    return torch.arange(float(np.prod(shape))).view(shape)


# --- planes -----------------------------------------------------------------------------------------------------------


def test_planes_by_eye() -> None:
    assert list(PLANES) == ["axial", "coronal", "sagittal"]
    assert [plane.axis for plane in PLANES.values()] == [2, 0, 1]
    assert [plane.world_axis for plane in PLANES.values()] == [2, 1, 0]
    assert [plane.world_axes_in_plane for plane in PLANES.values()] == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
def test_a_plane_is_told_by_the_orientation_of_the_volume(plane: Any) -> None:
    towards = AXCODES[plane.axis]
    assert plane.letter == OPPOSITE[towards]
    assert plane.last == ENDS[towards]
    assert {plane.first, plane.last} in ({"anterior", "posterior"}, {"right", "left"}, {"inferior", "superior"})
    assert plane.world_axis not in plane.world_axes_in_plane


def test_an_unknown_plane_is_named() -> None:
    require_planes([])
    require_planes(list(PLANES))
    with pytest.raises(ValueError, match=r"Unknown plane 'oblique' in axes: choose of \['axial', 'coronal', 'sag"):
        require_planes(["axial", "oblique", "other"])


@pytest.mark.parametrize("name", PLANES)
def test_a_stack_holds_the_slices_of_a_plane_in_their_order(name: str) -> None:
    volume, axis = numbered(), PLANES[name].axis
    stack = stack_of(volume, name)
    assert len(stack) == SHAPE[axis]
    for index, planes in enumerate(stack):
        expected = volume.select(1 + axis, index)  # (C, first, second), of the two axes that are left
        # rows of coronal and sagittal slices run along Z, the last axis
        assert torch.equal(planes, expected if name == "axial" else expected.transpose(1, 2))


@pytest.mark.parametrize("name", PLANES)
def test_a_stack_is_a_view(name: str) -> None:
    volume = numbered()
    stack_of(volume, name)[1].fill_(-1)
    assert (volume.select(1 + PLANES[name].axis, 1) == -1).all()
    assert int((volume == -1).sum()) == volume.numel() // SHAPE[PLANES[name].axis]


# --- places -----------------------------------------------------------------------------------------------------------


def test_part_and_join_of_places_are_inverse() -> None:
    places = Places(["axial", "axial", "coronal", "sagittal"], torch.tensor([0.0, 1.0, 0.25, 0.5]))
    one, other = places.part(slice(0, 3)), places.part(slice(3, None))
    assert list(one.planes) == ["axial", "axial", "coronal"]
    assert one.positions.tolist() == [0, 1, 0.25]
    joined = Places.join([one, other])
    assert joined.planes == list(places.planes)
    assert torch.equal(joined.positions, places.positions)


# --- affines ----------------------------------------------------------------------------------------------------------


def test_voxel_spacing_is_the_length_of_each_axis() -> None:
    affine = torch.tensor([[0.0, -2, 0, 9], [0, 0, 3, 9], [5, 0, 0, 9], [0, 0, 0, 1]], dtype=torch.float64)
    assert voxel_spacing(MetaTensor(numbered(), affine=affine)) == [5, 2, 3]
    oblique = torch.eye(4, dtype=torch.float64)
    oblique[:2, :2] = torch.tensor([[3.0, -4.0], [4.0, 3.0]])
    assert voxel_spacing(MetaTensor(numbered(), affine=oblique)) == pytest.approx([5, 5, 1])
    assert voxel_spacing(numbered()) == [1, 1, 1]


def test_the_affine_is_in_ras_whatever_the_reader_was_told() -> None:
    affine = np.array([[0.0, -2, 0, 9], [3, 0, 0, -4], [0, 0, 5, 7], [0, 0, 0, 1]])
    np.testing.assert_array_equal(ras_affine(torch.as_tensor(affine), {}), affine)
    np.testing.assert_array_equal(ras_affine(affine, {"space": "RAS"}), affine)
    np.testing.assert_array_equal(ras_affine(affine, {"space": "LPS"}), np.diag([-1, -1, 1, 1]) @ affine)


@pytest.mark.parametrize(
    ("position", "text"),
    [(12.46, "S +12.5 mm"), (0, "S +0.0 mm"), (-0.04, "S +0.0 mm"), (-7.0, "S \N{MINUS SIGN}7.0 mm")],
)
def test_a_position_has_its_sign(position: float, text: str) -> None:
    assert format_position("S", position) == text


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_an_affine_that_can_be_inverted_passes_in_any_unit(scale: float) -> None:
    sheared = np.array([[1, 0.5, 0, 1], [0, 1, 0, 2], [0, 0.1, 20, 3], [0, 0, 0, 1.0]])
    sheared[:3, :3] *= scale
    check_affine(sheared, "a.nii", 3)


@pytest.mark.parametrize(
    ("column", "n_axes"),  # what stands in place of the third axis
    [([0, 0, 0], 3), ([1, 1, 0], 3), ([np.nan, 0, 1], 3), ([0, np.inf, 1], 3), ([np.nan, 0, 1], 2)],
)
def test_an_affine_that_cannot_be_inverted_is_refused(column: list[float], n_axes: int) -> None:
    affine = np.eye(4)
    affine[:3, 2] = column
    with pytest.raises(ValueError, match=r"can be inverted in a\.nii; got .*Correct the header \(sform and qform"):
        check_affine(affine, "a.nii", n_axes)


def test_of_an_image_only_its_own_axes_count() -> None:
    flat = np.diag([1.0, 2.0, 0.0, 1.0])
    check_affine(flat, "a.nii", 2)
    with pytest.raises(ValueError, match="can be inverted"):
        check_affine(flat, "a.nii", 3)


def image(affine: Any = None, shape: tuple[int, ...] = (1, 11, 6, 3), **meta: Any) -> MetaTensor:
    affine = torch.eye(4, dtype=torch.float64) if affine is None else torch.as_tensor(affine)
    return MetaTensor(torch.zeros(shape), affine=affine, meta=meta)


def test_corner_distance_is_that_of_the_farthest_corner() -> None:
    moved = np.eye(4)
    moved[:3, 3] = 3, 0, -4
    assert corner_distance(image(), image(moved)) == pytest.approx(5)
    assert corner_distance(image(), image(np.diag([1.1, 1, 1, 1]))) == pytest.approx(1)  # 10 voxels of 0.1 mm
    assert corner_distance(image(), image()) == 0
    assert corner_distance(image(), image(np.diag([-1.0, -1, 1, 1]), space="LPS")) == 0
    assert corner_distance(image(shape=(1, 11, 6)), image(np.diag([1.0, 1.2, 9, 1]), (1, 11, 6))) == pytest.approx(1)


def test_an_affine_without_a_place_is_infinitely_far() -> None:
    nowhere = np.eye(4)
    nowhere[0, 3] = np.nan
    assert corner_distance(image(), image(nowhere)) == np.inf


def test_pictures_are_told_by_their_suffix() -> None:
    assert any_picture("a.PNG")
    assert any_picture("a.nii.gz", "b.jpeg")
    assert not any_picture("a.nii", "png", "a.png.nii")
    assert not any_picture()

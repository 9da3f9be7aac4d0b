import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from aeflow_monai import Slicer
from aeflow_monai.engine import ReportPicturesd
from aeflow_monai.engine.inference.stacked_maps import StackedMap
from aeflow_monai.output.report import PictureBlock

PLS = torch.tensor([[0.0, -1, 0, 16], [-1, 0, 0, 16], [0, 0, 5, -10], [0, 0, 0, 1]])


def block_of(slicer: Slicer, image: torch.Tensor, peak: int, plane: str = "axial", **more: Any) -> PictureBlock:
    """The pictures of an image whose map is a tenth of it, with some slices skipped."""
    indices = slicer.chosen(image.as_subclass(torch.Tensor), plane)
    stack = slicer.slices(image.as_subclass(torch.Tensor), plane, indices)
    scores = torch.full((slicer.count(image, plane),), math.nan)
    scores[indices] = 0.0
    scores[peak] = 5.0
    data = {
        "image": image,
        "anomaly_map": StackedMap(slicer, image, {plane: stack * 8}, {plane: indices}),
        "slice_scores": {plane: scores},
        "map_threshold": 4.0,
        **more,
    }
    block = ReportPicturesd(slicer)(data)["report_pictures"]
    assert isinstance(block, PictureBlock)
    return block


def image_of(*shape: int, affine: torch.Tensor = PLS) -> MetaTensor:
    """Grey rises along each axis, from above 0."""
    ramps = [torch.linspace(0.1, 0.3, size) for size in shape]
    values = sum(ramp.view([-1 if d == axis else 1 for d in range(3)]) for axis, ramp in enumerate(ramps))
    return MetaTensor(torch.as_tensor(values)[None], affine=affine)


def test_levels_are_those_of_image_and_map() -> None:
    slicer = Slicer(image_size=[32, 32])
    image = image_of(32, 32, 5)
    block = block_of(slicer, image, peak=3)
    grey = (image[0].as_subclass(torch.Tensor).permute(2, 0, 1) * 255).round().numpy()
    assert np.array_equal(block.layers["image"], grey)
    assert block.map_top == 8.0  # twice the threshold: a map of 8 times the image has its grey levels
    assert np.abs(block.layers["anomaly_map"].astype(int) - grey).max() <= 1
    assert (block.plane, block.numbers, block.peak) == ("axial", (1, 2, 3, 4, 5), 3)
    assert block.positions_mm == (-10.0, -5.0, 0.0, 5.0, 10.0)
    # an image that comes from no file is its own
    assert (block.profile["axis"], block.profile["n_slices"]) == ("k", 5)
    assert block.profile["slices_from_0"] == [0, 1, 2, 3, 4]
    assert block.extent_mm == (32.0, 32.0, 5.0)
    assert block.profile["scores"] == [0.0, 0.0, 0.0, 5.0, 0.0]


def test_a_long_volume_has_64_slices_at_most_and_the_most_anomalous_among_them() -> None:
    slicer = Slicer(image_size=[32, 32])
    for count, peak in ((63, 0), (64, 63), (65, 17), (200, 101), (1000, 999)):
        block = block_of(slicer, image_of(8, 8, count), peak)
        assert len(block.numbers) <= 64
        assert block.numbers[block.peak] == peak + 1
        assert len({*np.diff(block.numbers)}) == 1
        assert len(block.profile["scores"]) == count


def test_skipped_slices_between_others_have_a_black_map() -> None:
    slicer = Slicer(image_size=[32, 32], min_foreground=0.5)
    image = image_of(16, 16, 6)
    image[..., 0] = image[..., 3] = 0
    block = block_of(slicer, image, peak=4)
    assert block.numbers == (2, 3, 4, 5, 6)  # not the first, before all others
    assert not block.layers["anomaly_map"][2].any()
    assert block.layers["anomaly_map"][[0, 1, 3, 4]].all()
    assert block.profile["scores"][3] is None


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_slices_keep_their_proportions(plane: str, fit: str) -> None:
    slicer = Slicer(axes=[plane], image_size=[64, 32], fit=fit)
    affine = torch.diag(torch.tensor([2.0, 3.0, 5.0, 1.0])) @ torch.tensor(
        [[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    block = block_of(slicer, image_of(20, 24, 12, affine=affine), peak=4, plane=plane)
    rows, columns = block.layers["image"].shape[1:]
    spacing = {"axial": (3.0, 2.0), "coronal": (5.0, 2.0), "sagittal": (5.0, 3.0)}[plane]  # along rows, columns
    own = {"axial": (20, 24), "coronal": (12, 24), "sagittal": (12, 20)}[plane]
    pixels = own if fit == "resize" else (rows, columns)
    assert block.extent_mm[:2] == (pixels[0] * spacing[0], pixels[1] * spacing[1])
    assert (rows, columns) == (64, 32)


def test_large_slices_are_reduced_and_small_lesions_stay() -> None:
    slicer = Slicer(image_size=[512, 512])
    lesion = torch.zeros(1, 512, 512, 3)
    lesion[0, 100:103, 200:203, 1] = 2
    block = block_of(slicer, image_of(512, 512, 3), peak=1, lesion=lesion)
    assert {layer.shape for layer in block.layers.values()} == {(3, 128, 128)}
    assert set(np.unique(block.layers["lesion"])) == {0, 255}
    assert block.layers["lesion"][1, 25, 50] == 255
    assert not block.layers["lesion"][[0, 2]].any()


def test_a_picture_has_one_slice_and_no_place() -> None:
    slicer = Slicer(image_size=[512, 512])
    block = block_of(slicer, image_of(40, 30, 1), peak=0)
    assert (block.numbers, block.positions_mm, block.layers["image"].shape) == ((1,), (), (1, 320, 320))
    assert block.extent_mm[0] / block.extent_mm[1] == 40 / 30


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30, 1e30])
def test_odd_values_give_grey_levels(value: float) -> None:
    image = image_of(16, 16, 2)
    image[0, 3, 3, 0] = value
    assert block_of(Slicer(image_size=[32, 32]), image, peak=1).layers["image"].dtype == np.uint8


def test_maps_that_are_no_slices_have_no_pictures() -> None:
    data = {"image": image_of(8, 8, 2), "anomaly_map": torch.zeros(1, 8, 8, 2)}
    assert "report_pictures" not in ReportPicturesd(Slicer())(data)

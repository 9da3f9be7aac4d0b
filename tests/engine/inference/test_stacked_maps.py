import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd
from outputs import contents
from torch import Tensor

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.inference.inferer import SlicedInferer
from aeflow_monai.engine.inference.stacked_maps import StackedMap, StackMapsd
from aeflow_monai.geometry import PLANES as GEOMETRY
from aeflow_monai.geometry import Places
from aeflow_monai.output.case_score import MaskMapd
from aeflow_monai.output.maps import WriteMapsd

PLANES = tuple(GEOMETRY)
ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for flips in itertools.product((0, 1), repeat=3)
]
AFFINE = torch.tensor([[0.0, -2, 0, 40], [-1, 0, 0, 30], [0, 0, 5, -10], [0, 0, 0, 1]], dtype=torch.float64)


def network(slices: Tensor, places: Places) -> dict[str, Tensor]:
    return {"double": 2 * slices, "square": slices**2, "score": slices.amax(dim=(1, 2, 3))}


def volume() -> Tensor:
    """Its first axial and its first three coronal slices are empty, so that they are skipped."""
    values = torch.rand(1, 1, 19, 15, 12, generator=torch.Generator().manual_seed(0))
    values[..., 0] = values[..., :3, :, :] = 0
    return values


@pytest.mark.parametrize("axes", [c for n in (1, 2, 3) for c in itertools.permutations(PLANES, n)])
@pytest.mark.parametrize(("size", "fit"), [([32, 32], "pad"), ([8, 8], "resize"), ([32, 64], "resize")])
def test_stacks_put_together_are_the_maps_of_the_inferer(axes: tuple[str, ...], size: list[int], fit: str) -> None:
    slicer = Slicer(axes, image_size=size, fit=fit, min_foreground=0.05)
    inferer, image = SlicedInferer(slicer), volume()
    maps = inferer(image, network)
    assert isinstance(maps, dict)
    output = inferer.stacks(image, network)
    data = StackMapsd(slicer)(
        {
            "image": MetaTensor(image[0], affine=AFFINE),
            "stacks": {
                name: {plane: stack[0] for plane, stack in stacks.items()} for name, stacks in output["stacks"].items()
            },
            "indices": {plane: numbers[0] for plane, numbers in output["indices"].items()},
        }
    )
    assert data.keys() == {"image", "double", "square"}
    for name in ("double", "square"):
        deferred = data[name]
        assert isinstance(deferred, StackedMap)
        assert deferred.shape == (1, 19, 15, 12)
        together = deferred.volume()
        assert torch.equal(together.as_tensor(), maps[name][0])
        assert torch.equal(together.affine, AFFINE)
        for axis, index in itertools.product(range(3), (0, 3, -1)):
            at = index % together.shape[1 + axis]
            assert torch.equal(deferred.slice(axis, at), together.as_tensor().select(1 + axis, at))
    for plane in axes:
        assert torch.equal(output[f"score_{plane}"].isnan(), maps[f"score_{plane}"].isnan())


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("channels", [1, 3])
def test_planes_of_a_channel_are_those_of_the_volume(plane: str, channels: int) -> None:
    stacked = stacked_map(torch.zeros(1, 9, 11, 21), plane, channels)
    together, axis = stacked.volume(), GEOMETRY[plane].axis
    assert stacked.axis_of_planes == axis
    for channel, (start, stop) in itertools.product(range(channels), ((0, 3), (2, 9), (4, 5), (0, 9))):
        expected = together[channel : channel + 1].narrow(1 + axis, start, stop - start)
        assert torch.equal(stacked.planes(channel, start, stop), expected)


def test_of_several_planes_and_of_a_picture_no_plane_is_made_by_itself() -> None:
    image, stack, indices = torch.zeros(1, 8, 8, 8), torch.rand(2, 1, 8, 8), torch.tensor([1, 4])
    slicer = Slicer(("axial", "coronal"), image_size=[8, 8])
    both = StackedMap(slicer, image, dict.fromkeys(slicer.axes, stack), dict.fromkeys(slicer.axes, indices))
    assert both.axis_of_planes is None
    picture = StackedMap(slicer, image[..., :1], {"axial": stack[:1]}, {"axial": torch.tensor([0])})
    assert picture.axis_of_planes is None


def test_some_slices_of_a_plane_show_the_mean_over_all_planes() -> None:
    slicer = Slicer(("axial", "coronal"), image_size=[8, 8])
    stacks = {plane: torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) for plane in slicer.axes}
    stacked = StackedMap(slicer, torch.zeros(1, 12, 12, 12), stacks, dict.fromkeys(stacks, torch.arange(1, 11)))
    mean = stacked.averaged("coronal", torch.tensor([0, 3, 4, 9]))
    assert {plane: numbers.tolist() for plane, numbers in mean.indices.items()} == {"coronal": [3, 4, 9]}
    assert torch.equal(mean.stacks["coronal"], slicer.slices(stacked.pasted(), "coronal", torch.tensor([3, 4, 9])))
    alone = StackedMap(slicer, stacked.image, {"axial": stacks["axial"]}, {"axial": torch.arange(1, 11)})
    assert alone.averaged("axial", torch.tensor([3])) is alone


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_map_is_written_plane_by_plane_as_it_is_written_whole(tmp_path: Path, axcodes: str, channels: int) -> None:
    """In files of every orientation; where the planes are not those of the file, it is put together."""
    orientation = nib.orientations.axcodes2ornt(axcodes)
    affine = nib.orientations.inv_ornt_aff(orientation, (9, 11, 21)) @ np.diag([1.5, 1, 2, 1])
    nib.save(nib.Nifti1Image(np.zeros((9, 11, 21), np.uint8), affine), tmp_path / "scan.nii")
    image = Compose([LoadImaged("x"), EnsureChannelFirstd("x"), Orientationd("x", axcodes="PLS", labels=None)])(
        {"x": tmp_path / "scan.nii"}
    )["x"]
    by_planes = []
    for plane in PLANES:
        stacked = stacked_map(image, plane, channels)
        case = {"case": plane, "anomaly_map": stacked, "map_threshold": 0.5}
        deferred, whole = MaskMapd()(case), MaskMapd()({**case, "anomaly_map": stacked.volume()})
        for folder, data in (("deferred", deferred), ("whole", whole)):
            WriteMapsd(["anomaly_map", "anomaly_mask"], tmp_path / folder, ".nii.gz")(data)
        by_planes.append(stacked.turn_of_planes is not None)
    assert contents(tmp_path / "deferred") == contents(tmp_path / "whole")
    assert by_planes.count(True) == 1


def test_other_formats_are_written_whole(tmp_path: Path) -> None:
    stacked = stacked_map(MetaTensor(torch.zeros(1, 9, 11, 21), affine=AFFINE), "axial", 1)
    for folder, value in (("deferred", stacked), ("whole", stacked.volume())):
        WriteMapsd("x", tmp_path / folder, ".mha")({"case": "a", "x": value})
    assert contents(tmp_path / "deferred") == contents(tmp_path / "whole")


def stacked_map(image: Tensor, plane: str, channels: int) -> StackedMap:
    """Of random values, without the first slice and one in the middle."""
    count = image.shape[1 + GEOMETRY[plane].axis]
    indices = torch.tensor([index for index in range(1, count) if index != 5])
    generator = torch.Generator().manual_seed(0)
    stack = torch.rand(len(indices), channels, 8, 16, generator=generator)
    return StackedMap(Slicer((plane,), image_size=[8, 16]), image, {plane: stack}, {plane: indices})


def test_slices_of_several_batches_stand_in_their_order() -> None:
    slicer = Slicer(image_size=[32, 32], fit="pad")
    image = torch.linspace(0.1, 1, 23).expand(1, 1, 9, 9, 23).clone()
    stack = SlicedInferer(slicer, batch_size=3).stacks(image, network)["stacks"]["double"]["axial"]
    torch.testing.assert_close(stack.amax(dim=(0, 2, 3, 4)), 2 * torch.linspace(0.1, 1, 23))

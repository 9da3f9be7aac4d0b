import itertools

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.inferer import SlicedInferer
from aeflow_monai.engine.stacked_maps import StackedMap, StackMapsd
from aeflow_monai.geometry import Places

PLANES = ("axial", "coronal", "sagittal")
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


def test_slices_of_several_batches_stand_in_their_order() -> None:
    slicer = Slicer(image_size=[32, 32], fit="pad")
    image = torch.linspace(0.1, 1, 23).expand(1, 1, 9, 9, 23).clone()
    stack = SlicedInferer(slicer, batch_size=3).stacks(image, network)["stacks"]["double"]["axial"]
    torch.testing.assert_close(stack.amax(dim=(0, 2, 3, 4)), 2 * torch.linspace(0.1, 1, 23))

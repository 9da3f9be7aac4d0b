import pytest
import torch
from torch import Tensor

from aeflow_monai.geometry import Places
from aeflow_monai.score.stack import SliceStack, foreground_of


def a_stack(n: int, first: int = 0, plane: str | None = "axial") -> SliceStack:
    """Slices numbered from `first`, each of which holds its number."""
    numbers = torch.arange(first, first + n, dtype=torch.float32)
    places = None if plane is None else Places([plane] * n, numbers / 10)
    maps = numbers.view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    return SliceStack(maps, 100 + numbers, maps.int() % 2 == 0, places)


def same(one: SliceStack, other: SliceStack) -> bool:
    tensors = zip(one[:3], other[:3], strict=True)
    if (one.places is None) != (other.places is None) or not all(torch.equal(*pair) for pair in tensors):
        return False
    if one.places is None or other.places is None:
        return True
    return list(one.places.planes) == list(other.places.planes) and torch.equal(
        one.places.positions, other.places.positions
    )


@pytest.mark.parametrize("plane", ["coronal", None])
def test_part_takes_the_same_slices_of_everything(plane: str | None) -> None:
    assert same(a_stack(6, plane=plane).part(slice(2, 5)), a_stack(3, first=2, plane=plane))


@pytest.mark.parametrize("plane", ["coronal", None])
def test_join_undoes_part(plane: str | None) -> None:
    stack = a_stack(6, plane=plane)
    parts = [stack.part(slice(start, start + 2)) for start in (0, 2, 4)]
    assert same(SliceStack.join(parts), stack)
    assert same(SliceStack.join([stack]), stack)


def test_join_keeps_the_order_and_the_planes() -> None:
    joined = SliceStack.join([a_stack(2, first=4, plane="sagittal"), a_stack(1, plane="axial")])
    assert joined.dissimilarity.tolist() == [104, 105, 100]
    assert joined.weighted_sum[:, 0, 0, 0].tolist() == [4, 5, 0]
    assert joined.foreground[:, 0, 0, 0].tolist() == [True, False, True]
    assert joined.places is not None
    assert joined.places.planes == ["sagittal", "sagittal", "axial"]
    torch.testing.assert_close(joined.places.positions, torch.tensor([0.4, 0.5, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_channel_above_zero_is_foreground(dtype: torch.dtype) -> None:
    image = torch.tensor([[[0, 1, 0, -1]], [[0, 0, 0.25, 0]]], dtype=dtype)[None]
    expected: Tensor = torch.tensor([False, True, True, False]).view(1, 1, 1, 4)
    found = foreground_of(image)
    assert found.dtype == torch.bool
    assert torch.equal(found, expected)

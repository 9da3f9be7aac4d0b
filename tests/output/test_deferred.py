import threading
import weakref
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from aeflow_monai.output import deferred
from aeflow_monai.output.deferred import AssembleMapsd, DeferredMap, EachMapd, ExceedingMap


class Filled(DeferredMap):
    """A map of one value, which remembers the volumes that it gave."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.given: list[weakref.ref[Any]] = []

    image = MetaTensor(torch.zeros(1, 4, 5, 6))
    shape = (1, 4, 5, 6)
    dtype = torch.float32
    axis_of_planes: int | None = None

    def volume(self) -> MetaTensor:
        volume = MetaTensor(torch.full(self.shape, self.value))
        self.given.append(weakref.ref(volume))
        return volume

    def slice(self, axis: int, index: int) -> Tensor:
        return self.volume().as_tensor().select(1 + axis, index)

    def planes(self, channel: int, start: int, stop: int) -> Tensor:
        return torch.full((1, 4, 5, stop - start), self.value)


def test_of_maps_that_are_put_together_the_others_are_dropped() -> None:
    data = AssembleMapsd("a")({"a": Filled(1.0), "b": Filled(2.0), "case": "x"})
    assert data.keys() == {"a", "case"}
    assert (data["a"] == 1).all()
    assert AssembleMapsd("c", allow_missing_keys=True)({"case": "x"}) == {"case": "x"}


def test_each_map_is_written_by_itself_with_all_else() -> None:
    written: list[dict[Any, Any]] = []
    each = EachMapd(["a", "b", "c"], lambda d: {**d, "n": len(d)}, written.append, allow_missing_keys=True)
    plain = torch.zeros(1, 2, 2, 2)
    data = {"a": Filled(1.0), "b": plain, "case": "x"}
    assert each(data) == data
    assert [sorted(map(str, d)) for d in written] == [["a", "case", "n"], ["b", "case", "n"]]
    assert (written[0]["a"] == 1).all()
    assert written[1]["b"] is plain


def test_maps_that_nobody_wants_are_not_made() -> None:
    written: list[dict[Any, Any]] = []
    data = {"a": Filled(1.0), "b": Filled(2.0), "case": "x"}
    EachMapd(["a", "b"], dict, written.append, only=["b"])(data)
    assert [{*d} for d in written] == [{"b", "case"}]
    EachMapd(["a", "b"], dict, written.append, only=[])(data)
    assert len(written) == 1


@pytest.mark.parametrize("large", [1, 10**6])
def test_only_one_large_map_is_there_at_a_time(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    monkeypatch.setattr(deferred, "_LARGE", large)
    maps = {name: Filled(float(n)) for n, name in enumerate("abcde")}
    alive: list[int] = []
    both = threading.Event()

    def count(data: dict[Any, Any]) -> dict[Any, Any]:
        alive.append(sum(given() is not None for each in maps.values() for given in each.given))
        if alive[-1] == 2:
            both.set()
        return data

    def write(data: dict[Any, Any]) -> None:
        both.wait(0.3)  # which gives the next the time to be made ready

    EachMapd(list(maps), count, write)(maps)
    assert max(alive) == 1 if large == 1 else 2 <= max(alive) <= 3


@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_maps_that_are_made_by_planes_of_their_file_are_not_put_together(
    monkeypatch: pytest.MonkeyPatch, axis: int | None
) -> None:
    """In the file, as in the image here, planes stand across the third axis."""
    monkeypatch.setattr(deferred, "_LARGE", 1)
    maps = {name: Filled(1.0) for name in "abc"}
    for each in maps.values():
        each.axis_of_planes = axis
    written: list[Any] = []
    both = threading.Barrier(2)

    def write(data: dict[Any, Any]) -> None:
        written.extend(data.values())
        if axis == 2 and len(written) < 3:
            both.wait(10)  # although they are large, two are written at the same time

    EachMapd(list(maps), dict, write)(maps)
    assert [isinstance(value, DeferredMap) for value in written] == [axis == 2] * 3


def test_a_map_without_a_place_or_of_a_resampled_image_is_put_together() -> None:
    filled = Filled(1.0)
    filled.axis_of_planes = 2
    assert filled.turn_of_planes is not None
    filled.image = torch.zeros(1, 4, 5, 6)
    assert filled.turn_of_planes is None
    filled.image = MetaTensor(torch.zeros(1, 4, 5, 6), meta={"spatial_shape": [8, 10, 6]})
    assert filled.turn_of_planes is None


def test_a_mask_is_as_deferred_as_its_map() -> None:
    mask = ExceedingMap(Filled(2.0), threshold=1.0)
    assert (mask.shape, mask.dtype, mask.axis_of_planes) == ((1, 4, 5, 6), torch.uint8, None)
    for values, shape in ((mask.volume(), (1, 4, 5, 6)), (mask.slice(0, 1), (1, 5, 6)), (mask.planes(0, 2, 4), None)):
        assert values.dtype == torch.uint8
        assert values.shape == (shape or (1, 4, 5, 2))
        assert (values == 1).all()
    assert not ExceedingMap(Filled(2.0), threshold=2.0).volume().any()


def test_an_error_of_either_side_is_raised() -> None:
    def fail(data: Any) -> Any:
        raise ValueError("no space")

    for pair in ((fail, dict), (dict, fail)):
        with pytest.raises(ValueError, match="no space"):
            EachMapd("a", *pair)({"a": Filled(1.0)})

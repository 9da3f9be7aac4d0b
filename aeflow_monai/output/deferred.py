"""Maps that are assembled one at a time when they are needed: all maps of a large volume take gigabytes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any

import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from aeflow_monai.output.file_grid import turn_to_file

__all__ = ["AssembleMapsd", "DeferredMap", "EachMapd", "ExceedingMap", "alone_if_large", "assembled", "exceeding"]

Array = npt.NDArray[Any]

# Number of voxels from which on only one assembled map is kept in memory.
_LARGE = 2**24
_ROOM = Lock()


class DeferredMap(ABC):
    """A map of a volume (C, X, Y, Z) that is not assembled yet."""

    @property
    @abstractmethod
    def image(self) -> Tensor:
        """Return the preprocessed image (c, X, Y, Z), which is on the same grid as the map."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """Return the number of channels, and the spatial shape of the volume."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Return the data type of the map."""

    @property
    @abstractmethod
    def axis_of_planes(self) -> int | None:
        """Return the spatial axis, 0 to 2, across which slices can be made separately; None if they cannot."""

    @abstractmethod
    def volume(self) -> MetaTensor:
        """Assemble the map: (C, X, Y, Z), with the affine of the preprocessed image."""

    @abstractmethod
    def slice(self, axis: int, index: int) -> Tensor:
        """Return a slice (C, ., .) of `volume` across a spatial axis, 0 to 2."""

    @abstractmethod
    def planes(self, channel: int, start: int, stop: int) -> Tensor:
        """Return slices of a channel across `axis_of_planes`, as a thin volume (1, ., ., .).

        Args:
            channel: index of the channel.
            start: the first slice.
            stop: the slice after the last one.
        """

    @property
    def turn_of_planes(self) -> Array | None:
        """Return how to turn the map to the grid of its file plane by plane, see `turn_to_file`; None if impossible.

        It is possible if nothing is resampled, and if the slices that can be made separately are the planes of the
        file, which are contiguous in it.
        """
        if self.axis_of_planes is None or not isinstance(self.image, MetaTensor):
            return None
        turn = turn_to_file(self.image)
        return turn if turn is not None and turn[self.axis_of_planes, 0] == 2 else None


class ExceedingMap(DeferredMap):
    """Mask of where a map exceeds a threshold, as uint8 0 or 1.

    Args:
        of: the map.
        threshold: the threshold, in the map's unit.
    """

    def __init__(self, of: DeferredMap, threshold: float) -> None:
        self.of = of
        self.threshold = threshold

    @property
    def image(self) -> Tensor:
        """Return the image of the map."""
        return self.of.image

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """See `DeferredMap`."""
        return self.of.shape

    @property
    def dtype(self) -> torch.dtype:
        """Return the data type of the mask."""
        return torch.uint8

    @property
    def axis_of_planes(self) -> int | None:
        """See `DeferredMap`."""
        return self.of.axis_of_planes

    def volume(self) -> Any:
        """See `DeferredMap`."""
        return exceeding(self.of.volume(), self.threshold)

    def slice(self, axis: int, index: int) -> Tensor:
        """See `DeferredMap`."""
        return exceeding(self.of.slice(axis, index), self.threshold)

    def planes(self, channel: int, start: int, stop: int) -> Tensor:
        """See `DeferredMap`."""
        return exceeding(self.of.planes(channel, start, stop), self.threshold)


def exceeding(values: Tensor, threshold: float) -> Tensor:
    """Return where values exceed a threshold, as uint8 0 or 1."""
    return (values > threshold).view(torch.uint8)  # without a copy


def assembled(value: Any) -> Any:
    """Assemble a deferred map; return anything else as it is."""
    return value.volume() if isinstance(value, DeferredMap) else value


@contextmanager
def alone_if_large(shape: Sequence[int]) -> Iterator[None]:
    """Wait until no other thread has a large map assembled, if this one is large too.

    Args:
        shape: shape of the map, (C, ...).
    """
    if math.prod(shape[1:]) < _LARGE:
        yield
        return
    with _ROOM:
        yield


class AssembleMapsd(MapTransform):  # type: ignore[misc]
    """Assemble maps, and drop all other deferred ones.

    Args:
        keys: keys of deferred maps.
        allow_missing_keys: skip missing keys.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Assemble the maps of one case."""
        d = dict(data)
        d.update({key: assembled(d[key]) for key in self.key_iterator(d)})
        return {key: value for key, value in d.items() if not isinstance(value, DeferredMap)}


class EachMapd(MapTransform):  # type: ignore[misc]
    """Assemble, transform and write one map after the other, to bound the memory.

    While a map is written, the next one is prepared, unless it is large. A map that can be written plane by plane, see
    `DeferredMap.turn_of_planes`, is not assembled: the transforms get it deferred.

    Args:
        keys: keys of maps, deferred or not; each goes through the transforms with all data but the other maps.
        transform: prepares a map. Called in this thread.
        write: writes a map. Called in another thread.
        allow_missing_keys: skip missing keys.
        only: keys of the wanted maps; all if None.

    Example:
        >>> import torch
        >>> written = []
        >>> each = EachMapd(["a", "b"], lambda d: {k: v + 1 for k, v in d.items()}, lambda d: written.append(d))
        >>> _ = each({"a": torch.zeros(1), "b": torch.ones(1)})
        >>> written
        [{'a': tensor([1.])}, {'b': tensor([2.])}]
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: Callable[[dict[Hashable, Any]], Any],
        write: Callable[[Any], Any],
        allow_missing_keys: bool = False,
        only: Collection[Hashable] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.only = only
        self.transform = transform
        self.write = write

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the maps of one case.

        Returns:
            The dictionary, unchanged.

        Raises:
            Exception: the first error of a transform or of `write`.
        """
        d = dict(data)
        maps = {key: d[key] for key in self.key_iterator(d)}
        others = {key: value for key, value in d.items() if key not in maps}
        maps = {key: value for key, value in maps.items() if self.only is None or key in self.only}
        if len(maps) == 1:  # there is nothing to prepare meanwhile
            ((key, value),) = maps.items()
            with _room_for(value):
                self.write(self._ready(others, key, value))
            return d
        with ThreadPoolExecutor(2) as pool:
            begun: deque[Future[Any]] = deque()
            for key, value in maps.items():
                with _room_for(value):
                    begun.append(pool.submit(self.write, self._ready(others, key, value)))
                    is_alone = not _is_by_planes(value) and math.prod(value.shape[1:]) >= _LARGE
                    while len(begun) >= (1 if is_alone else 2):
                        begun.popleft().result()
            while begun:
                begun.popleft().result()
        return d

    def _ready(self, others: Mapping[Hashable, Any], key: Hashable, value: Any) -> Any:
        return self.transform({**others, key: value if _is_by_planes(value) else assembled(value)})


def _is_by_planes(value: Any) -> bool:
    return isinstance(value, DeferredMap) and value.turn_of_planes is not None


def _room_for(value: Any) -> AbstractContextManager[None]:
    return nullcontext() if _is_by_planes(value) else alone_if_large(value.shape)

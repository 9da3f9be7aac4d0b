"""Maps that are put together when they are needed, one at a time: all those of a large volume take gigabytes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

__all__ = ["AssembleMapsd", "DeferredMap", "EachMapd", "alone_if_large", "assembled"]

# Voxels of a map from which on it is alone in memory.
_LARGE = 2**24
_ROOM = Lock()


class DeferredMap(ABC):
    """A map of a volume (C, X, Y, Z) that is not put together yet."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """Channels, and the spatial shape of the volume."""

    @abstractmethod
    def volume(self) -> MetaTensor:
        """Put the map together: (C, X, Y, Z), placed as the preprocessed image is."""

    @abstractmethod
    def slice(self, axis: int, index: int) -> Tensor:
        """A slice (C, ., .) across a spatial axis, 0 to 2, of what `volume` gives."""


def assembled(value: Any) -> Any:
    """The volume of a deferred map; anything else as it is."""
    return value.volume() if isinstance(value, DeferredMap) else value


@contextmanager
def alone_if_large(shape: Sequence[int]) -> Iterator[None]:
    """Wait until no other thread has a large map put together, if this one is large too.

    Args:
        shape: of the map, (C, ...).
    """
    if math.prod(shape[1:]) < _LARGE:
        yield
        return
    with _ROOM:
        yield


class AssembleMapsd(MapTransform):  # type: ignore[misc]
    """Put maps together, and let go of all others that are deferred.

    Args:
        keys: of deferred maps.
        allow_missing_keys: pass over keys that are not there.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the maps of one case together."""
        d = dict(data)
        d.update({key: assembled(d[key]) for key in self.key_iterator(d)})
        return {key: value for key, value in d.items() if not isinstance(value, DeferredMap)}


class EachMapd(MapTransform):  # type: ignore[misc]
    """Put one map after the other together, transform and write it, and let go of it.

    While a map is written, the next is made ready, unless it is large.

    Args:
        keys: of maps, deferred or not; each goes through the transforms with all that is no map of these keys.
        transform: makes a map ready. Called in this thread.
        write: writes it. Called in another thread.
        allow_missing_keys: pass over keys that are not there.

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
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = transform
        self.write = write

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the maps of one case.

        Returns:
            The dictionary, unchanged.

        Raises:
            Exception: the first that a transform or `write` raises.
        """
        d = dict(data)
        maps = {key: d[key] for key in self.key_iterator(d)}
        others = {key: value for key, value in d.items() if key not in maps}
        if len(maps) == 1:  # nothing is made ready meanwhile
            ((key, value),) = maps.items()
            with alone_if_large(value.shape):
                self.write(self.transform({**others, key: assembled(value)}))
            return d
        with ThreadPoolExecutor(2) as pool:
            begun: deque[Future[Any]] = deque()
            for key, value in maps.items():
                with alone_if_large(value.shape):
                    begun.append(pool.submit(self.write, self.transform({**others, key: assembled(value)})))
                    while len(begun) >= (1 if math.prod(value.shape[1:]) >= _LARGE else 2):
                        begun.popleft().result()
            while begun:
                begun.popleft().result()
        return d

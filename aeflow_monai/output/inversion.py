"""How maps come back to the grid of the file that their image came from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.data import MetaTensor
from monai.transforms import Invertd

from aeflow_monai.output.deferred import DeferredMap
from aeflow_monai.output.file_grid import turn_to_file

__all__ = ["InvertMapd"]


class InvertMapd(Invertd):  # type: ignore[misc]
    """MONAI's `Invertd`, which leaves alone what `WriteMapsd` turns by itself without a copy.

    Args:
        keys: of maps (C, X, Y, Z), or of deferred ones that are written plane by plane; the arguments are those of
            `monai.transforms.Invertd`.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring the maps of one case back to the grid of their file, but for the order and direction of axes."""
        d = dict(data)
        if all(_is_turned_later(d[key]) for key in self.key_iterator(d)):
            return d
        return super().__call__(d)  # type: ignore[no-any-return]


def _is_turned_later(value: Any) -> bool:
    if isinstance(value, DeferredMap):
        return value.turn_of_planes is not None
    return isinstance(value, MetaTensor) and turn_to_file(value) is not None

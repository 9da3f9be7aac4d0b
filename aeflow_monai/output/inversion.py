"""Inverse transforms of maps to the grid of the file that their image was loaded from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.data import MetaTensor
from monai.transforms import Invertd

from aeflow_monai.output.deferred import DeferredMap
from aeflow_monai.output.file_grid import turn_to_file

__all__ = ["InvertMapd"]


class InvertMapd(Invertd):  # type: ignore[misc]
    """Variant of MONAI's `Invertd` that leaves the turning of axes to `WriteMapsd`, which needs no copy for it.

    Args:
        keys: keys of maps (C, X, Y, Z), or of deferred maps that are written plane by plane; the arguments are those of
            `monai.transforms.Invertd`.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Transform the maps of one case back to the grid of their file, except for order and direction of axes."""
        d = dict(data)
        if all(_is_turned_later(d[key]) for key in self.key_iterator(d)):
            return d
        return super().__call__(d)  # type: ignore[no-any-return]


def _is_turned_later(value: Any) -> bool:
    if isinstance(value, DeferredMap):
        return value.turn_of_planes is not None
    return isinstance(value, MetaTensor) and turn_to_file(value) is not None

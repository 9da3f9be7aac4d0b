"""Small pictures of some slices of a case, as a page stores them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["MAX_SLICES", "PictureBlock"]

Bytes = npt.NDArray[np.uint8]

MAX_SLICES = 64  # per case
_ACROSS = 8  # slices in a row of a picture
# JPEG quality of each layer, for a single slice and for several: encoding is ten times as fast as WebP, and half as
# large again. The outline of a map depends on its values; a mask is binary, and becomes a PNG.
_QUALITY = {"image": (88, 72), "reconstruction": (80, 65), "anomaly_map": (90, 82)}


class PictureBlock(NamedTuple):
    """Downsampled slices of a case, as grey levels.

    Attributes:
        plane: plane of the slices.
        numbers: numbers of the slices in the profile, from 1, ascending, (n,).
        positions_mm: positions of these slices, (n,); empty if unknown.
        peak: index of the most anomalous of the n slices.
        extent_mm: height and width of a slice, and distance from one slice of the block to the next.
        window: grey levels, 0 to 255, that are shown black and white.
        map_top: map value of grey level 255; 0 is 0 or less. In standard deviations of normals.
        layers: "image", and optionally "reconstruction", both with 255 for 1; "anomaly_map"; "lesion", 0 or 255. Each
            (n, rows, columns).
        profile: "scores" of all slices of the plane in the network's orientation, None where a slice was skipped, their
            "positions_mm" and "slices_from_0", and "axis" and "n_slices" of the file; see `SlicePlace`.
    """

    plane: str
    numbers: tuple[int, ...]
    positions_mm: tuple[float, ...]
    peak: int
    extent_mm: tuple[float, float, float]
    window: tuple[int, int]
    map_top: float
    layers: Mapping[str, Bytes]
    profile: Mapping[str, Any]

    def single(self) -> PictureBlock:
        """Return a block of the most anomalous slice only, without profile."""
        at = slice(self.peak, self.peak + 1)
        layers = {name: layer[at] for name, layer in self.layers.items()}
        return self._replace(
            numbers=self.numbers[at], positions_mm=self.positions_mm[at], peak=0, layers=layers, profile={}
        )

    def encoded(self) -> dict[str, Any]:
        """Return the block for JSON: each layer is one picture of all slices, row by row, as a data URL.

        Example:
            >>> layers = {"image": np.zeros((3, 8, 8), dtype=np.uint8)}
            >>> block = PictureBlock("axial", (1, 2, 3), (), 1, (8.0, 8.0, 2.0), (0, 255), 6.0, layers, {})
            >>> encoded = block.encoded()
            >>> encoded["rows"], encoded["across"], encoded["layers"]["image"][:11]
            (8, 3, 'data:image/')
        """
        count, rows, columns = self.layers["image"].shape
        across = min(count, _ACROSS)
        content = self._asdict() | {"rows": rows, "columns": columns, "across": across, "profile": dict(self.profile)}
        content["layers"] = {
            name: _data_url(name, _sheet(layer, across), count == 1) for name, layer in self.layers.items()
        }
        return content


def _sheet(layer: Bytes, across: int) -> Bytes:
    """Arrange slices (n, rows, columns) in rows of several."""
    count, rows, columns = layer.shape
    down = math.ceil(count / across)
    sheet = np.zeros((down, across, rows, columns), dtype=np.uint8)
    sheet.reshape(-1, rows, columns)[:count] = layer
    return sheet.swapaxes(1, 2).reshape(down * rows, across * columns)


def _data_url(name: str, picture: Bytes, is_single: bool) -> str:
    stream, image = io.BytesIO(), Image.fromarray(picture)
    if name in _QUALITY:
        kind = "jpeg"
        image.save(stream, kind, quality=_QUALITY[name][0 if is_single else 1])
    else:
        kind = "png"
        image.convert("1").save(stream, kind)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"

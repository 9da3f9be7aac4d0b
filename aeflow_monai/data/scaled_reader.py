"""MONAI's NIfTI reader, with integers scaled without a volume in double precision."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.data import NibabelReader
from nibabel.volumeutils import apply_read_scaling

__all__ = ["ScaledReader"]

_CHUNK = 2**22  # voxels scaled at once
_SAMPLED = 10**6


class ScaledReader(NibabelReader):  # type: ignore[misc]
    """MONAI's `NibabelReader`, with stored integers of 8 and 16 bits scaled in chunks.

    Values are computed in double precision, as in nibabel, and rounded to single precision.

    Attributes:
        sample: a sample of the scaled values in double precision, with their minimum and maximum, if any were scaled.
    """

    sample: npt.NDArray[Any] | None = None

    def _get_array_data(self, img: nib.Nifti1Image, filename: str) -> npt.NDArray[Any]:
        proxy = img.dataobj
        is_scaled = (proxy.slope, proxy.inter) != (1, 0)
        if not is_scaled or proxy.dtype.kind not in "iu" or proxy.dtype.itemsize > 2:
            return super()._get_array_data(img, filename)  # type: ignore[no-any-return]
        stored = np.asanyarray(proxy.get_unscaled())
        factors = np.asanyarray(proxy.slope), np.asanyarray(proxy.inter)
        some = stored.ravel(order="K")[:: max(1, stored.size // _SAMPLED)]
        self.sample = apply_read_scaling(np.concatenate([some, [stored.min(), stored.max()]]), *factors)
        voxels = np.empty(stored.shape, np.float32, order="F")
        # in file order, whose last axis is the slowest
        n_slices = max(1, _CHUNK // stored[..., :1].size)
        with np.errstate(over="ignore", under="ignore"):
            for start in range(0, stored.shape[-1], n_slices):
                part = np.s_[..., start : start + n_slices]
                voxels[part] = apply_read_scaling(stored[part], *factors)
        return voxels

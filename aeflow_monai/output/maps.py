"""Writing of maps and masks in the geometry of their input."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from aeflow_monai.files import case_file_name
from aeflow_monai.output.deferred import DeferredMap, alone_if_large
from aeflow_monai.output.file_grid import input_affine
from aeflow_monai.output.itk_files import check_directions, write_itk
from aeflow_monai.output.nifti_files import NIFTI, nifti_header, source_header, write_nifti, write_nifti_planes

__all__ = ["EXTENSIONS", "MAPS", "OUTPUTS", "WriteMapsd", "maps_behind"]

Array = npt.NDArray[Any]

# Maps of a detector, on the grid of its slices.
MAPS = ("anomaly_map", "reconstruction", "residual", "log_likelihood")
# Possible outputs of an inference; a saliency map is written if the inferer makes one.
OUTPUTS = (*MAPS, "anomaly_mask", "overlay", "profile")
EXTENSIONS = (*NIFTI, ".nrrd", ".mha", ".mhd")
_WRITERS = 2  # files of a case that are compressed in parallel
_SMALL = 2**16  # voxels below which starting a thread takes longer than writing a file
_PLANES = 8  # planes of a deferred map that are made at a time
_OF_MASKS = (torch.bool, torch.uint8)


def maps_behind(outputs: Collection[str]) -> set[str]:
    """Return the maps that outputs are derived from: a mask needs the anomaly map. Saliency is always included.

    Example:
        >>> sorted(maps_behind(["anomaly_mask", "residual", "overlay"]))
        ['anomaly_map', 'residual', 'saliency']
    """
    wanted = {"anomaly_map" if name == "anomaly_mask" else name for name in outputs}
    return (wanted & {*MAPS}) | {"saliency"}


class WriteMapsd(MapTransform):  # type: ignore[misc]
    """Write the maps and masks of one case on the grid of its input.

    A file `<output_dir>/<case>_<key><extension>` is written for each key. Its shape and affine are those of the input
    file, including a trailing singleton dimension, so that both can be overlaid in any viewer. The data has to be on
    that grid already, see `InvertMapd`; nothing is resampled here. Only the order and the direction of the axes may
    differ, as after `Orientationd`: they are turned without a copy.

    From NIfTI to NIfTI, both transforms (sform and qform) with their codes, the voxel sizes and the units are copied
    from the header of the input, which is the file that the data's `filename_or_obj` names, the first one of several
    modalities. In all other cases the affine is written, in NIfTI as both transforms with code 1.

    The header of each file contains the mark of this package, which `aeflow_monai.marks.has_mark` recognises.

    If possible, a deferred map is made, turned, compressed and written a few planes at a time, see
    `DeferredMap.turn_of_planes`, and is never in memory as a whole.

    Booleans, `uint8`, and the data under the key `anomaly_mask` are written as `uint8`, everything else as `float32`.

    Args:
        keys: Keys of the data to write.
        output_dir: Folder to write to, created if it is missing.
        extension: `.nii.gz`, `.nii`, `.nrrd`, `.mha` or `.mhd`. The last three are ITK's, whose
            directions are orthonormal: no sheared affine, and no 2D image outside the world's x-y plane.
        only: Keys that are written, not all of which have to exist; "saliency" is written whenever it exists. If None,
            all keys are written and have to exist.

    Raises:
        ValueError: If the extension is unknown; when called, if the case is not a valid file name, if the data is not
            on the grid of its input, if a mask has fractional values, or if the format cannot store the affine.
        TypeError: When called, if the data is not a `MetaTensor`, so that its affine is unknown.

    Example:
        >>> import tempfile
        >>> import nibabel as nib
        >>> affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))
        >>> anomaly_map = MetaTensor(torch.rand(1, 8, 8, 4), affine=affine)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = WriteMapsd(["anomaly_map"], folder)({"case": "sub-01", "anomaly_map": anomaly_map})
        ...     nib.load(f"{folder}/sub-01_anomaly_map.nii.gz").shape
        (8, 8, 4)
    """

    def __init__(
        self,
        keys: Sequence[Hashable] | Hashable,
        output_dir: str | Path,
        extension: str = ".nii.gz",
        only: Collection[Hashable] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys=only is not None)
        if only is not None and "saliency" in self.keys:  # requested by an option of the inferer
            only = {*only, "saliency"}
        self.only = only
        if extension not in EXTENSIONS:
            raise ValueError(f"extension has to be one of {', '.join(EXTENSIONS)}, got {extension!r}.")
        self.output_dir = Path(output_dir)
        self.extension = extension

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files of one case.

        Args:
            data: The decollated dictionary: `case`, and for each key a `MetaTensor` of shape (C, X, Y) or
                (C, X, Y, Z).

        Returns:
            The dictionary, unchanged.
        """
        d = dict(data)
        keys = [key for key in self.key_iterator(d) if self.only is None or key in self.only]
        if keys:
            case = case_file_name(d)
            if len(keys) == 1 or all(math.prod(getattr(d[key], "shape", ())) < _SMALL for key in keys):
                for key in keys:
                    self._write(d[key], key, case)
                return d
            # compression releases Python's lock, so that two cores work on it
            with ThreadPoolExecutor(_WRITERS) as pool:
                for written in [pool.submit(self._write, d[key], key, case) for key in keys]:
                    written.result()
        return d

    def _write(self, value: Any, key: Hashable, case: str) -> None:
        if isinstance(value, DeferredMap):
            self._write_deferred(value, key, case)
            return
        if not isinstance(value, MetaTensor):
            raise TypeError(
                f"'{key}' of case '{case}' has to be a MetaTensor, got {type(value).__name__}, whose "
                "affine is unknown: apply Invertd to it first."
            )
        if value.ndim not in (3, 4):
            raise ValueError(
                f"'{key}' of case '{case}' has to be of shape (C, X, Y) or (C, X, Y, Z), got "
                f"{tuple(value.shape)}: remove the batch dimension with Decollated."
            )
        array, dtype = to_numpy(value), _dtype_of(value, key, case)
        affine, turn = input_affine(value, key, case)
        if turn is not None:
            array = np.moveaxis(nib.apply_orientation(np.moveaxis(array, 0, -1), turn), -1, 0)
        path = self.output_dir / f"{case}_{key}{self.extension}"
        if self.extension in NIFTI:
            write_nifti(path, array.astype(dtype, copy=False), affine, source_header(value.meta), str(key))
        else:
            if (
                array.ndim == 3 and len(affine) == 4 and not np.allclose(affine[2], (0, 0, 1, 0))
            ):  # 2D files hold a place in x and y alone
                array = array[..., None]
            check_directions(affine, array.ndim - 1, case, self.extension)
            write_itk(path, array, dtype, affine)

    def _write_deferred(self, value: DeferredMap, key: Hashable, case: str) -> None:
        axis, turn = value.axis_of_planes, value.turn_of_planes
        if axis is None or turn is None or self.extension not in NIFTI:
            with alone_if_large(value.shape):
                self._write(value.volume(), key, case)
            return
        image: Any = value.image
        affine, _ = input_affine(image, key, case)
        # shape of the turned map, since nothing else differs
        shape = [value.shape[0], *(value.shape[1 + int(own)] for own in np.argsort(turn[:, 0]))]
        dtype = np.dtype(np.uint8 if value.dtype in _OF_MASKS else np.float32)
        header = nifti_header(shape, dtype, affine, source_header(image.meta), str(key))
        write_nifti_planes(
            self.output_dir / f"{case}_{key}{self.extension}", _planes_in_file(value, axis, turn), header
        )


def _dtype_of(value: MetaTensor, key: Hashable, case: str) -> type[np.generic]:
    """Return the data type that a map or mask is written as; raise an error if a mask has fractional values."""
    if value.dtype in _OF_MASKS:
        return np.uint8
    if key != "anomaly_mask":
        return np.float32
    array = to_numpy(value)
    if not ((array >= 0) & (array <= 255) & (array == np.floor(array))).all():
        raise ValueError(
            f"'{key}' of case '{case}' has to hold whole numbers from 0 to 255: invert it with "
            "nearest_interp=True, or threshold the inverted map."
        )
    return np.uint8


def to_numpy(value: Any) -> Array:
    """Convert a tensor to an array: float32, or uint8 if it is boolean or uint8."""
    tensor = torch.as_tensor(value)
    if isinstance(tensor, MetaTensor):
        tensor = tensor.as_tensor()
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bool:
        tensor = tensor.view(torch.uint8)
    array: Array = (tensor if tensor.dtype == torch.uint8 else tensor.to(torch.float32)).numpy()
    return array


def _planes_in_file(value: DeferredMap, axis: int, turn: Array) -> Iterator[Array]:
    """Yield planes (X, Y) of a map in the orientation of its file, made a few at a time."""
    n_planes = value.shape[1 + axis]
    starts = range(0, n_planes, _PLANES)
    for channel in range(value.shape[0]):
        for start in starts if turn[axis, 1] > 0 else reversed(starts):
            some = to_numpy(value.planes(channel, start, min(start + _PLANES, n_planes)))[0]
            yield from np.moveaxis(nib.apply_orientation(some, turn), -1, 0)

"""Maps and masks on disk, in the geometry of their input."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import ITKWriter, MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform

from aeflow_monai.files import case_file_name, gzip, replacing, unfinished_path
from aeflow_monai.geometry import untailed
from aeflow_monai.marks import MARK, mark_nifti
from aeflow_monai.output.deferred import DeferredMap, alone_if_large
from aeflow_monai.output.file_grid import input_affine

__all__ = ["MAPS", "OUTPUTS", "WriteMapsd", "source_header", "write_nifti"]

Array = npt.NDArray[Any]

# Maps of a detector, on the grid of its slices.
MAPS = ("anomaly_map", "reconstruction", "residual", "log_likelihood")
# What an inference can write; a saliency map is written where the inferer makes one.
OUTPUTS = (*MAPS, "anomaly_mask", "overlay", "profile")
NIFTI = (".nii.gz", ".nii")
EXTENSIONS = (*NIFTI, ".nrrd", ".mha", ".mhd")
# What places a NIfTI file in the world, with its units.
QFORM = ("pixdim", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
SFORM = ("sform_code", "srow_x", "srow_y", "srow_z")
GEOMETRY = (*QFORM, *SFORM, "xyzt_units")
_WRITERS = 2  # files of a case that are compressed at the same time
_SMALL = 2**16  # voxels below which a thread takes longer to start than a file to write
# Bytes that are compressed in one go: nibabel writes slice by slice, and after each a thread has to wait for its turn.
_BLOCK = 2**23
_PLANES = 8  # of a deferred map that are made at a time
_OF_MASKS = (torch.bool, torch.uint8)


class WriteMapsd(MapTransform):  # type: ignore[misc]
    """Write the maps and masks of one case on the grid of its input.

    A file `<output_dir>/<case>_<key><extension>` is written for each key. Its shape and affine are those of
    the input file, including a trailing singleton dimension, so that both overlay in any viewer. The data has
    to be back on that grid already, see `InvertMapd`; nothing is resampled here. Only the order and the direction of
    the axes may differ, as after `Orientationd`: they are turned without a copy.

    From NIfTI to NIfTI, both transforms (sform and qform) with their codes, the voxel sizes and the units are
    copied from the header of the input, which is the file that the data's `filename_or_obj` names, of several
    modalities the first. All else goes by the affine, in NIfTI as both transforms with code 1.

    Each file bears the mark of this package in its header, by which `aeflow_monai.marks.has_mark` knows it.

    A deferred map is made, turned, compressed and written a few planes at a time where that is possible, see
    `DeferredMap.turn_of_planes`, and is never whole in memory.

    Booleans, `uint8`, and whatever stands under the key `anomaly_mask` are written as `uint8`, everything else as
    `float32`.

    Args:
        keys: Keys of the data to write.
        output_dir: Folder to write to, made if it is missing.
        extension: `.nii.gz`, `.nii`, `.nrrd`, `.mha` or `.mhd`. The last three are ITK's, whose
            directions are orthonormal: no sheared affine, and no 2D image outside the world's x-y plane.
        only: Those of the keys that are written, of which not all have to be there; "saliency" is written whenever it
            is. If None, all keys are written and have to be there.

    Raises:
        ValueError: If the extension is unknown; when called, if the case is no file name, if the data is not
            on the grid of its input, if a mask holds fractions, or if the format cannot hold the affine.
        TypeError: When called, if the data is not a `MetaTensor`, so that its place in the world is unknown.

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
        if only is not None and "saliency" in self.keys:  # asked for by an option of the inferer
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
            # compression lets go of Python's lock, so that two cores work at it
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
            _check_directions(affine, value.ndim - 1, case, self.extension)
            _write_itk(path, array, dtype, affine)

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
        header = _header(shape, dtype, affine, source_header(image.meta), str(key))
        _write_planes(self.output_dir / f"{case}_{key}{self.extension}", _planes_in_file(value, axis, turn), header)


def _dtype_of(value: MetaTensor, key: Hashable, case: str) -> type[np.generic]:
    """What a map or mask is written as; raises if a mask holds fractions."""
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


def _write_itk(path: Path, array: Array, dtype: type[np.generic], affine: Array) -> None:
    # Not by the setters of MONAI's writer, which squeeze (X, Y, 1) to (X, Y).
    writer = _MarkedWriter(output_dtype=dtype)
    writer.affine = affine
    writer.channel_dim = None if len(array) == 1 else -1
    writer.data_obj = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    if path.suffix == ".mhd":  # the header names the file of its voxels: both are written under their own names
        pair = unfinished_path(path.with_name("pair"))
        pair.mkdir(parents=True)
        try:
            writer.write(pair / path.name)
            for part in sorted(pair.iterdir(), key=lambda part: part.suffix == ".mhd"):  # the header last
                part.replace(path.with_name(part.name))
        finally:
            shutil.rmtree(pair, ignore_errors=True)
        return
    with replacing(path) as unfinished:
        writer.write(unfinished)


def to_numpy(value: Any) -> Array:
    """A tensor as an array: float32, or uint8 if it is boolean or uint8."""
    tensor = torch.as_tensor(value)
    if isinstance(tensor, MetaTensor):
        tensor = tensor.as_tensor()
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bool:
        tensor = tensor.view(torch.uint8)
    array: Array = (tensor if tensor.dtype == torch.uint8 else tensor.to(torch.float32)).numpy()
    return array


def source_header(meta: Mapping[str, Any]) -> nib.Nifti1Header | None:
    """Header of the NIfTI file that the case was loaded from, None if it is another format or gone."""
    path = Path(str(meta.get("filename_or_obj", "")))
    return nib.load(path).header if path.name.lower().endswith(NIFTI) and path.is_file() else None


def write_nifti(
    path: Path, array: Array, affine: Array, source: nib.Nifti1Header | None, holds: str = "anomaly_mask"
) -> None:
    """Write an array (C, X, Y) or (C, X, Y, Z) in the geometry of the source, or of the affine if there is none."""
    planes = array if array.ndim == 3 else (plane for channel in array for plane in np.moveaxis(channel, -1, 0))
    _write_planes(path, planes, _header(array.shape, array.dtype, affine, source, holds))


def _header(
    shape: Sequence[int], dtype: np.dtype[Any], affine: Array, source: nib.Nifti1Header | None, holds: str
) -> nib.Nifti1Header:
    """That of a file of an array of this shape, (C, X, Y) or (C, X, Y, Z); see `write_nifti`."""
    n_channels, *of_file = shape
    if n_channels > 1:
        # (X, Y, Z, C) or (X, Y, 1, C): NIfTI's third axis is spatial
        of_file = [*of_file, n_channels] if len(of_file) == 3 else [*of_file, 1, n_channels]
    elif source is not None and untailed(source.get_data_shape()) == untailed(tuple(of_file)):
        of_file = list(source.get_data_shape())  # (X, Y, Z) to (X, Y, Z, 1), where the source is so
    nothing = np.broadcast_to(np.zeros((), dtype), of_file)  # an array of that shape, without its memory
    if source is None:
        image = nib.Nifti1Image(nothing, to_affine_nd(3, affine))
        image.set_sform(image.affine, code=1)
        image.set_qform(image.affine, code=1)
    else:
        # Not the whole header: its display range, intent and scaling belong to the source's values.
        image_class = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
        header = image_class.header_class()
        header.set_data_dtype(dtype)
        for field in GEOMETRY:
            header[field] = source[field]
        image = image_class(nothing, None, header)
    image.header.set_slope_inter(1, 0)
    mark_nifti(image.header, holds)
    return image.header


def _write_planes(path: Path, planes: Iterable[Array], header: nib.Nifti1Header) -> None:
    """Write a file of a header, and planes (X, Y) as they come: along the third axis, then along the fourth."""
    with replacing(path) as unfinished, unfinished.open("wb") as file, ExitStack() as stack:
        stream: Any = file
        if path.suffix == ".gz":
            # Neither name nor time, so that the same case is the same file.
            packed = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0))
            stream = stack.enter_context(io.BufferedWriter(packed, _BLOCK))
        header.write_to(stream)
        dtype = header.get_data_dtype()
        for plane in planes:
            columns = plane.T  # in the file each of them is whole
            at_once = max(1, _BLOCK // max(1, columns[:1].nbytes))
            for start in range(0, len(columns), at_once):
                stream.write(np.ascontiguousarray(columns[start : start + at_once], dtype))


def _planes_in_file(value: DeferredMap, axis: int, turn: Array) -> Iterator[Array]:
    """Planes (X, Y) of a map as its file has them, made a few at a time."""
    n_planes = value.shape[1 + axis]
    starts = range(0, n_planes, _PLANES)
    for channel in range(value.shape[0]):
        for start in starts if turn[axis, 1] > 0 else reversed(starts):
            some = to_numpy(value.planes(channel, start, min(start + _PLANES, n_planes)))[0]
            yield from np.moveaxis(nib.apply_orientation(some, turn), -1, 0)


class _MarkedWriter(ITKWriter):  # type: ignore[misc]
    """Writes the mark of this package into the header too."""

    @classmethod
    def create_backend_obj(cls, *args: Any, **kwargs: Any) -> Any:
        image = super().create_backend_obj(*args, **kwargs)
        fields = image.GetMetaDataDictionary()
        fields[MARK] = "output"
        image.SetMetaDataDictionary(fields)
        return image


def _check_directions(affine: Array, ndim: int, case: str, extension: str) -> None:
    """Refuse axes that are not at right angles, or a 2D image that is not in the x-y plane."""
    axes = affine[:-1, :ndim]
    directions = (axes / np.linalg.norm(axes, axis=0))[:ndim]
    if not np.allclose(directions.T @ directions, np.eye(ndim), atol=1e-3):
        raise ValueError(
            f"the affine of case '{case}' is sheared or oblique to its plane, which {extension} cannot hold: "
            f"directions {directions.round(3).tolist()} are not orthonormal; use the extension .nii.gz."
        )

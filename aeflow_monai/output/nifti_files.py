"""NIfTI files of maps and masks, in the geometry of their input file."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.data.utils import to_affine_nd

from aeflow_monai.compression import gzip
from aeflow_monai.files import replacing
from aeflow_monai.geometry import untailed
from aeflow_monai.marks import mark_nifti

__all__ = ["NIFTI", "nifti_header", "source_header", "write_nifti", "write_nifti_planes"]

Array = npt.NDArray[Any]

NIFTI = (".nii.gz", ".nii")
# Header fields of the qform, with voxel sizes.
QFORM = ("pixdim", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
SFORM = ("sform_code", "srow_x", "srow_y", "srow_z")
GEOMETRY = (*QFORM, *SFORM, "xyzt_units")
# Bytes that are compressed at a time: nibabel writes slice by slice, and a thread has to wait for its turn after each.
_BLOCK = 2**23


def source_header(meta: Mapping[str, Any]) -> nib.Nifti1Header | None:
    """Return the header of the NIfTI file that the case was loaded from; None for another format or a missing file."""
    path = Path(str(meta.get("filename_or_obj", "")))
    return nib.load(path).header if path.name.lower().endswith(NIFTI) and path.is_file() else None


def write_nifti(
    path: Path, array: Array, affine: Array, source: nib.Nifti1Header | None, holds: str = "anomaly_mask"
) -> None:
    """Write an array (C, X, Y) or (C, X, Y, Z) in the geometry of the source, or with the affine if it is None."""
    planes = array if array.ndim == 3 else (plane for channel in array for plane in np.moveaxis(channel, -1, 0))
    write_nifti_planes(path, planes, nifti_header(array.shape, array.dtype, affine, source, holds))


def nifti_header(
    shape: Sequence[int], dtype: np.dtype[Any], affine: Array, source: nib.Nifti1Header | None, holds: str
) -> nib.Nifti1Header:
    """Return the header of a file of this shape, (C, X, Y) or (C, X, Y, Z); see `write_nifti`."""
    n_channels, *of_file = shape
    if n_channels > 1:
        # (X, Y, Z, C) or (X, Y, 1, C): NIfTI's third axis is spatial
        of_file = [*of_file, n_channels] if len(of_file) == 3 else [*of_file, 1, n_channels]
    elif source is not None and untailed(source.get_data_shape()) == untailed(tuple(of_file)):
        of_file = list(source.get_data_shape())  # (X, Y, Z) to (X, Y, Z, 1), if the source has this shape
    nothing = np.broadcast_to(np.zeros((), dtype), of_file)  # a view of that shape, without its memory
    if source is None:
        image = nib.Nifti1Image(nothing, to_affine_nd(3, affine))
        image.set_sform(image.affine, code=1)
        image.set_qform(image.affine, code=1)
    else:
        # Not the whole header: its display range, intent and scaling are those of the source's values.
        image_class = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
        header = image_class.header_class()
        header.set_data_dtype(dtype)
        for field in GEOMETRY:
            header[field] = source[field]
        image = image_class(nothing, None, header)
    image.header.set_slope_inter(1, 0)
    mark_nifti(image.header, holds)
    return image.header


def write_nifti_planes(path: Path, planes: Iterable[Array], header: nib.Nifti1Header) -> None:
    """Write a file from a header and an iterable of planes (X, Y): along the third axis, then along the fourth."""
    with replacing(path) as unfinished, unfinished.open("wb") as file, ExitStack() as stack:
        stream: Any = file
        if path.suffix == ".gz":
            # Neither name nor time, so that the same case gives the same file.
            packed = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0))
            stream = stack.enter_context(io.BufferedWriter(packed, _BLOCK))
        header.write_to(stream)
        dtype = header.get_data_dtype()
        for plane in planes:
            columns = plane.T  # Fortran order
            at_once = max(1, _BLOCK // max(1, columns[:1].nbytes))
            for start in range(0, len(columns), at_once):
                stream.write(np.ascontiguousarray(columns[start : start + at_once], dtype))

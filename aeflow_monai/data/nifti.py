"""Read NIfTI files in mm, and refuse files that are not images or are smaller than their headers declare."""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import threading
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst
from monai.utils import MetaKeys
from nibabel.spatialimages import HeaderDataError

from aeflow_monai.compression import gzip as fast_gzip
from aeflow_monai.data.numbers import as_float32, require_size
from aeflow_monai.data.scaled_reader import ScaledReader
from aeflow_monai.geometry import check_affine
from aeflow_monai.printable import first_line

__all__ = ["is_nifti", "read_nifti"]

_logger = logging.getLogger(__name__)
_told_of_sides = threading.Event()  # warn once per process, not for each file

_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz", ".gii")
_UNIT_MM = {"meter": 1000.0, "micron": 0.001}  # any other unit means mm
_TIME = ("sec", "msec", "usec")
# intent codes of points, triangles, indices of nodes and shapes of surfaces
_SURFACE = (1008, 1009, 2002, 2005)
_TRAILING = 15  # bytes that may follow the voxels: less than a row, so that a header cannot hide one
_HEADER_BYTES = 2**20  # enough for any header


def is_nifti(path: Path) -> bool:
    """Whether a path names a NIfTI file, a header and voxel pair, or a GIfTI surface, which is refused."""
    return path.name.lower().endswith(_SUFFIXES)


def read_nifti(path: Path) -> MetaTensor:
    """Read a complete NIfTI file, with an affine in mm.

    Args:
        path: path of the file, or of one file of a pair.

    Returns:
        (C, X, Y[, Z]) as float32; a fourth dimension becomes channels.

    Raises:
        ValueError: the file is damaged, truncated or larger than its header declares, has a singular affine, or holds
            something other than an image: complex numbers, colours, surfaces, vectors or a time series.
    """
    image = _open(path)
    _check_kind(image, path)
    _check_size(image, path)
    check_affine(image.affine, str(path), min(3, len(image.shape)))
    _check_forms(image, path)
    reader = ScaledReader()
    try:
        # not with its `read`, which replaces an affine that disagrees with the voxel sizes
        reader.filenames = (str(path),)
        values, meta = reader.get_data(image)
    except Exception as error:
        raise ValueError(_damaged(path, error)) from error
    if reader.sample is not None:
        as_float32(reader.sample, str(path))  # refuses values that 32 bits cannot hold
    while values.ndim > 4:  # trailing dimensions, which `_check_kind` found to be of size 1
        values = values[..., 0]
    if (factor := _UNIT_MM.get(image.header.get_xyzt_units()[0])) is not None:
        for key in (MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE):
            meta[key] = np.diag([factor, factor, factor, 1.0]) @ meta[key]
    meta["filename_or_obj"] = str(path)
    tensor = MetaTensor.ensure_torch_and_prune_meta(as_float32(values, str(path)), meta)
    return EnsureChannelFirst()(tensor)


def _open(path: Path) -> Any:
    try:
        image = nib.load(path)
    except FileNotFoundError as error:  # one file of a pair is missing
        raise FileNotFoundError(_half_a_pair(path, str(error.filename))) from None
    except Exception as error:
        _check_gzip(path, _HEADER_BYTES)
        raise ValueError(_no_nifti(path, error)) from error
    if isinstance(image, (nib.Cifti2Image, nib.GiftiImage)):
        raise ValueError(_a_surface(path, type(image).__name__))
    if not isinstance(image, (nib.Nifti1Pair, nib.Nifti2Pair)):
        what = "Analyze 7.5 or SPM" if isinstance(image, nib.AnalyzeImage) else type(image).__name__
        raise ValueError(
            f"Expected NIfTI in {path}; got {what}, whose header does not say which side is left. Convert it to NIfTI."
        )
    return image


def _check_kind(image: Any, path: Path) -> None:
    header, shape = image.header, tuple(image.shape)
    try:
        dtype, intent, time = header.get_data_dtype(), int(header["intent_code"]), header.get_xyzt_units()[1]
    except KeyError as error:
        raise ValueError(
            f"Expected units of length and time that NIfTI knows in {path}; got {error.args[0]}. Correct xyzt_units."
        ) from None
    fault = remedy = ""
    n_volumes = shape[3] if len(shape) > 3 else 1
    if 3000 <= intent < 3100 or intent in _SURFACE:
        raise ValueError(_a_surface(path, f"intent {intent}"))
    if dtype.kind == "c":
        fault, remedy = "complex numbers", "Save their magnitude."
    elif dtype.kind not in "iufb":
        fault, remedy = f"colours ({', '.join(dtype.names or [str(dtype)])})", "Save them as one grey volume."
    elif min(shape, default=0) < 1:
        fault, remedy = f"no voxels, shape {shape}", "Export the image again."
    elif math.prod(shape[4:]) > 1:
        fault = f"{len(shape)} dimensions, shape {shape}: vectors or a series"
        remedy = "Split a series into volumes first."
    elif n_volumes > 1 and time in _TIME and float(header["pixdim"][4]) not in (0.0, 1.0):
        fault = f"a time series of {n_volumes} volumes, {float(header['pixdim'][4]):g} {time} apart"
        remedy = "Split the series into volumes first, or take their mean."
    if fault:
        raise ValueError(f"Expected one image in {path}; got {fault}. {remedy}")


def _check_forms(image: Any, path: Path) -> None:
    """Prefer the sform, as nibabel does; refuse a qform that mirrors it, and warn if there is neither."""
    try:
        forms = [form for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)) if code]
    except Exception as error:
        raise ValueError(
            f"Expected an image in {path}; got a header whose sform or qform cannot be understood "
            f"({first_line(error)}). Correct the header, or export the image again."
        ) from error
    if not forms and len(image.shape) > 2 and image.shape[2] > 1 and not _told_of_sides.is_set():
        _told_of_sides.set()
        _logger.warning(
            f"{path} does not say which side is left: neither sform nor qform has a code. It is taken to run to left, "
            "to the front and upwards, as by nibabel. Further files are not named."
        )
    if len(forms) == 2 and np.linalg.det(forms[0][:3, :3]) * np.linalg.det(forms[1][:3, :3]) < 0:
        raise ValueError(
            f"Expected sform and qform of {path} to agree on which side is left; one mirrors the other. Correct the "
            "header, or export the image again."
        )


def _check_size(image: Any, path: Path) -> None:
    """Compare the declared size with that of the file, before memory is allocated."""
    dtype = image.header.get_data_dtype()
    scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
    require_size(image.shape, 8 if scaled else dtype.itemsize, str(path))
    data = Path(image.file_map["image"].filename)
    if not data.is_file():
        raise FileNotFoundError(_half_a_pair(path, str(data)))
    offset, first = int(image.dataobj.offset), int(image.header["sizeof_hdr"])
    if isinstance(image, (nib.Nifti1Image, nib.Nifti2Image)) and offset < first:  # a single file
        raise ValueError(
            f"Expected voxels behind the header of {path}, from byte {first} on; it claims that they begin at byte "
            f"{offset}. Correct vox_offset, or export the image again."
        )
    claimed = offset + math.prod(image.shape) * dtype.itemsize
    packed = data.suffix.lower() == ".gz"
    found = _check_gzip(data, claimed + _TRAILING) if packed else data.stat().st_size
    if not claimed <= found <= claimed + _TRAILING:
        fault = "a truncated file" if found < claimed else "a file that goes on behind its voxels"
        more = "or more " if packed and found > claimed else ""
        raise ValueError(
            f"Expected {claimed} bytes in {data}, for its shape {tuple(image.shape)}; got {fault}: {found} bytes {more}"
            "are there. Copy or export it again."
        )


def _check_gzip(path: Path, limit: int) -> int:
    """Return the decompressed size of a gzip file, read to its end or just past the limit; 0 for another file."""
    if path.suffix.lower() != ".gz":
        return 0
    # a third of zlib's time; on an error zlib below gives the message
    with contextlib.suppress(Exception):
        return _count(fast_gzip.open, path, limit)
    fault, remedy = "", "Copy or export the file again."
    try:
        return _count(gzip.open, path, limit)
    except EOFError:
        fault = "a truncated file: its compressed data end too early"
    except (gzip.BadGzipFile, zlib.error) as error:
        with path.open("rb") as stream:
            compressed = stream.read(2) == b"\x1f\x8b"
        fault = f"a damaged file: {error}"
        if not compressed:
            fault, remedy = "something that is not compressed with gzip", "Is it an image? Correct its extension."
    raise ValueError(f"Expected an image in {path}; got {fault}. {remedy}")


def _count(opener: Any, path: Path, limit: int) -> int:
    n_bytes = 0
    with opener(path) as stream:
        while n_bytes <= limit and (block := stream.read(2**20)):
            n_bytes += len(block)
    return n_bytes


def _half_a_pair(path: Path, missing: str) -> str:
    return (
        f"Expected header and voxels side by side, as of {path}; there is no file {missing}. Put it there, or save the "
        "image as .nii.gz."
    )


def _no_nifti(path: Path, error: Exception) -> str:
    with path.open("rb") as stream:
        head = stream.read(4096)
    if b"<GIFTI" in head:
        return _a_surface(path, "GIFTI")
    remedy = "Is it an image, and whole? Correct its extension, or export it again."
    if isinstance(error, HeaderDataError):
        return f"Expected an image in {path}; got a header that is wrong: {first_line(error)}. Export it again."
    if path.suffix.lower() == ".img" and not path.with_suffix(".hdr").exists():
        return _half_a_pair(path, str(path.with_suffix(".hdr")))
    if head[:2] == b"\x1f\x8b":
        return f"Expected an image in {path}; got one that is packed with gzip. Name it {path.name}.gz."
    return f"Expected an image in {path}; got content that no reader knows, beginning with {head[:12]!r}. {remedy}"


def _a_surface(path: Path, what: str) -> str:
    return f"Expected an image in {path}; got data of a surface ({what}). Give the volume that it was made from."


def _damaged(path: Path, error: Exception) -> str:
    reason = first_line(error) or type(error).__name__
    return (
        f"Expected an image in {path}; got a file that cannot be read ({reason}). It is probably truncated or damaged: "
        "copy or export it again."
    )

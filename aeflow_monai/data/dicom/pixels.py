"""Pixel values of DICOM files as floating point: decoded, rescaled frame by frame, MONOCHROME1 inverted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from aeflow_monai.data.dicom.frames import Frame
from aeflow_monai.data.dicom.headers import ALL_BITS, DicomFile, quiet, read_dataset

__all__ = ["colours", "intensities"]

Array = npt.NDArray[Any]
_BLOCK = 16  # slices


def intensities(frames: Sequence[Frame]) -> npt.NDArray[np.float32]:
    """Return the intensities of slices of one size, in their order.

    Each slice is rescaled by its own slope and intercept or lookup table, from its header or functional groups.
    MONOCHROME1, in which low values are bright, is inverted within the range of its bits. Padding, as around the
    circular field of a CT, is set to the lowest value elsewhere in the volume.

    Args:
        frames: slices of one or several files.

    Returns:
        The values, (columns, rows, n).

    Raises:
        ValueError: a file cannot be read or decoded; the message names it.
    """
    rows, columns = (frames[0].file.whole(keyword) or 0 for keyword in ("Rows", "Columns"))
    try:
        values = np.empty((columns, rows, len(frames)), np.float32)
    except MemoryError:
        raise ValueError(
            f"Expected an image that fits into the memory in {frames[0].file.path}; got {len(frames)} slices of {rows} "
            f"x {columns} pixels. Is its header damaged?"
        ) from None
    padded = False
    image, path = None, None
    blank = []  # slices that consist of padding
    for start in range(0, len(frames), _BLOCK):
        part = frames[start : start + _BLOCK]
        block = np.empty((len(part), rows, columns), np.float32)  # transposing a block is faster than slice by slice
        for k, frame in enumerate(part):
            if frame.file.path != path:
                image, path = _open(frame.file), frame.file.path
            share = _read_frame(image, frame, block[k])
            padded |= share > 0
            blank += [start + k] if share == 1 else []
        values[..., start : start + len(part)] = block.transpose(2, 1, 0)
    if padded and len(blank) < len(frames):  # if all slices consist of padding, the value marks something else
        values[..., blank] = np.nan
        np.nan_to_num(values, copy=False, nan=float(np.nanmin(values)))
    return values


def colours(file: DicomFile) -> npt.NDArray[np.float32]:
    """Return the red, green and blue values of a single-frame image, (rows, columns, 3).

    Raises:
        ValueError: the file cannot be read or decoded; the message names it.
    """
    data = read_dataset(file.path)
    with _decoding(file):
        from pydicom.pixels import apply_color_lut, pixel_array

        pixels = pixel_array(data)
        if data.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, data)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise _undecodable(file)
    return np.asarray(pixels, np.float32)


@contextmanager
def _decoding(file: DicomFile) -> Iterator[None]:
    """Turn errors of libraries and decoders, whose text may quote a value, into an error that names the file."""
    with quiet():
        try:
            _quieten_gdcm()
            yield
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:  # a panic in a Rust decoder is not an Exception
            raise _undecodable(file) from None


def _read_frame(image: Any, frame: Frame, values: Array) -> float:
    """Read a frame into an array, with NaN as padding unless all of it is padding; return the padded fraction."""
    with _decoding(frame.file):
        values[...] = _transformed(image, frame.offset)
        padding = _padding(image, frame.offset)
    if padding is None:
        return 0.0
    if not padding.all():
        values[padding] = np.nan
    return float(padding.mean())


def _open(file: DicomFile) -> Any:
    """Open a file as a highdicom image, adding the elements that old devices omit."""
    import highdicom

    data = read_dataset(file.path)
    if _rescales_in_groups(data):  # some devices add a meaningless one for the whole file
        data.pop("RescaleSlope", None)
        data.pop("RescaleIntercept", None)
    if data.get("RescaleSlope") == 0:  # readers treat 0 as absent
        raise ValueError(
            f"Expected a rescale slope other than 0 in {file.path}; got 0, by which all pixels have one value. Correct "
            "the header, or export the image again."
        )
    with _decoding(file):
        data.setdefault("SamplesPerPixel", 1)
        data.setdefault("PhotometricInterpretation", "MONOCHROME2")
        if "PixelData" in data:
            data.setdefault("PixelRepresentation", 0)
            data.setdefault("BitsStored", data.BitsAllocated)
        data.pop("PresentationLUTShape", None)  # it may contradict the photometric interpretation
        if not data.original_encoding[1] or _has_spare_bits(data):
            _as_plain(data)
        return highdicom.Image.from_dataset(data, copy=False)


def _rescales_in_groups(data: pydicom.Dataset) -> bool:
    """Whether the functional groups of an enhanced image have a rescale slope."""
    groups = (
        group
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        for group in data.get(keyword) or ()
    )
    return any("PixelValueTransformationSequence" in group for group in groups)


def _has_spare_bits(data: pydicom.Dataset) -> bool:
    """Whether stored values have unused bits, such as an overlay's, and an encoding that preserves them."""
    kept = data.file_meta.TransferSyntaxUID in ALL_BITS and "PixelData" in data
    return bool(kept and data.BitsStored < data.BitsAllocated)


def _as_plain(data: pydicom.Dataset) -> None:
    """Convert the pixels for highdicom: little endian, with unused bits cleared."""
    from pydicom.pixels import pixel_array

    pixels = pixel_array(data)
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OW"
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.set_original_encoding(False, True, data.original_character_set)


def _transformed(image: Any, index: int) -> Array:
    """Return the values of a frame in the units of its header."""
    if "PixelData" not in image:  # floating point already
        from pydicom.pixels import pixel_array

        return np.asarray(pixel_array(image, index=index))
    values: Array = image.get_frame(
        index,
        as_index=True,
        apply_real_world_transform=False,
        apply_modality_transform=None,
        apply_voi_transform=False,
        apply_presentation_lut=True,
    )
    return values


def _padding(image: Any, index: int) -> Array | None:
    """Return a mask of the padding of a frame; None if its header declares no padding."""
    value = image.get("PixelPaddingValue")
    if value is None or "PixelData" not in image:
        return None
    stored: Array = image.get_stored_frame(index, as_index=True)
    ends = [value, image.get("PixelPaddingRangeLimit")]
    # -2000 is often stored as the unsigned number with the same bits
    low, high = (_same_bits(int(value if end is None else end), stored.dtype) for end in ends)
    return (stored >= min(low, high)) & (stored <= max(low, high))


def _same_bits(value: int, dtype: np.dtype[Any]) -> int:
    return int(np.array(value % 2 ** (8 * dtype.itemsize), f"u{dtype.itemsize}").astype(dtype))


def _undecodable(file: DicomFile) -> ValueError:
    with quiet():
        syntax = getattr(getattr(file.header, "file_meta", None), "TransferSyntaxUID", None)
    name = syntax.name if syntax is not None and syntax.name != str(syntax) else "an unknown encoding"
    return ValueError(
        f"Expected a DICOM image in {file.path}; got pixels that cannot be decoded ({name}). The file is damaged, or "
        "nothing installed here knows this encoding: get it again, or decompress it, for example with gdcmconv --raw."
    )


def _quieten_gdcm() -> None:
    """Keep the GDCM decoder, if installed, from writing to the terminal."""
    try:
        import gdcm
    except ImportError:
        return
    gdcm.Trace.DebugOff()
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()

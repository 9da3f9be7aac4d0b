"""Pixels of DICOM files as floating point: decoded, rescaled frame by frame, MONOCHROME1 inverted."""

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
    """Intensities of slices of one size, in their order.

    Each slice has its own rescale slope and intercept or table, of its header or functional groups. MONOCHROME1, where
    low values are bright, is inverted within the range of its bits. Padding, as around the circle of a CT, takes the
    lowest value that the volume has elsewhere.

    Args:
        frames: of one file or of several.

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
    blank = []  # slices that are padding throughout
    for start in range(0, len(frames), _BLOCK):
        part = frames[start : start + _BLOCK]
        block = np.empty((len(part), rows, columns), np.float32)  # turned together, which is faster than one by one
        for k, frame in enumerate(part):
            if frame.file.path != path:
                image, path = _open(frame.file), frame.file.path
            share = _read_frame(image, frame, block[k])
            padded |= share > 0
            blank += [start + k] if share == 1 else []
        values[..., start : start + len(part)] = block.transpose(2, 1, 0)
    if padded and len(blank) < len(frames):  # where all is padding, its value is not for that
        values[..., blank] = np.nan
        np.nan_to_num(values, copy=False, nan=float(np.nanmin(values)))
    return values


def colours(file: DicomFile) -> npt.NDArray[np.float32]:
    """Red, green and blue of a picture of one frame, (rows, columns, 3).

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
    """Turn whatever a library or a decoder raises, whose text may quote a value, into an error that names the file."""
    with quiet():
        try:
            _quieten_gdcm()
            yield
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:  # a decoder in Rust panics with one that is no Exception
            raise _undecodable(file) from None


def _read_frame(image: Any, frame: Frame, values: Array) -> float:
    """Read one frame into an array, with NaN where it is padded unless it is throughout; the padded share."""
    with _decoding(frame.file):
        values[...] = _transformed(image, frame.offset)
        padding = _padding(image, frame.offset)
    if padding is None:
        return 0.0
    if not padding.all():
        values[padding] = np.nan
    return float(padding.mean())


def _open(file: DicomFile) -> Any:
    """The file as highdicom's image, with the elements that old devices leave out."""
    import highdicom

    data = read_dataset(file.path)
    if _rescales_in_groups(data):  # beside which one of the whole file, as some devices add it, says nothing
        data.pop("RescaleSlope", None)
        data.pop("RescaleIntercept", None)
    if data.get("RescaleSlope") == 0:  # which readers take for none
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
        data.pop("PresentationLUTShape", None)  # which contradicts the photometric interpretation where it matters
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
    """Whether a number has bits that are not its own, such as an overlay's, and a decoder that leaves them there."""
    kept = data.file_meta.TransferSyntaxUID in ALL_BITS and "PixelData" in data
    return bool(kept and data.BitsStored < data.BitsAllocated)


def _as_plain(data: pydicom.Dataset) -> None:
    """Pixels as highdicom takes them: little endian, each number by the bits that are its own."""
    from pydicom.pixels import pixel_array

    pixels = pixel_array(data)
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OW"
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.set_original_encoding(False, True, data.original_character_set)


def _transformed(image: Any, index: int) -> Array:
    """Values of a frame, in the units of its header."""
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
    """Where a frame is padded; None if its header speaks of no padding."""
    value = image.get("PixelPaddingValue")
    if value is None or "PixelData" not in image:
        return None
    stored: Array = image.get_stored_frame(index, as_index=True)
    ends = [value, image.get("PixelPaddingRangeLimit")]
    # -2000 is often written as the unsigned number of the same bits
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
    """Keep GDCM's decoder, where it is installed, from writing to the terminal."""
    try:
        import gdcm
    except ImportError:
        return
    gdcm.Trace.DebugOff()
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()

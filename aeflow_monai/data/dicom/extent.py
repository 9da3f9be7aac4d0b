"""Check that the pixel data of a DICOM file are complete and no larger than its header declares."""

from __future__ import annotations

import io
import os
from typing import Any

import pydicom

__all__ = ["NATIVE", "pixels_of"]

_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
NATIVE = (
    pydicom.uid.ImplicitVRLittleEndian,
    pydicom.uid.ExplicitVRLittleEndian,
    pydicom.uid.ExplicitVRBigEndian,
)


def pixels_of(stream: io.BufferedReader, header: pydicom.Dataset, size: int) -> tuple[bool, str]:
    """Check the pixel data that follow a header.

    Args:
        stream: the file, positioned after its header.
        header: header of the file.
        size: size of the file in bytes.

    Returns:
        Whether there are pixels, and the fault in their length; empty if there is none.
    """
    syntax = header.file_meta.TransferSyntaxUID
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return "Rows" in header, ""  # it was decompressed to its end
    order: Any = "little" if header.original_encoding[1] else "big"
    start = stream.read(4)
    if len(start) < 4:
        return False, ""
    group, element = (int.from_bytes(start[i : i + 2], order) for i in (0, 2))
    if (group << 16) + element not in _PIXEL_TAGS:
        return False, ""
    if (start := stream.read(4))[:2] in (b"OB", b"OW", b"OF", b"OD", b"UN"):  # explicit VR, even if declared implicit
        start = stream.read(4)
    length = int.from_bytes(start, order)
    if length == _UNDEFINED:
        return True, _encapsulated(stream, size, header)
    if (missing := stream.tell() + length - size) > 0:
        return True, _missing(missing)
    return True, _unlike_header(header, length) if syntax in NATIVE else ""


def _unlike_header(header: pydicom.Dataset, length: int) -> str:
    """Return the fault in the length of uncompressed pixels; empty if there is none."""
    bits = int(header.get("BitsAllocated") or 0) * int(header.get("SamplesPerPixel") or 1)
    columns, frames = int(header.get("Columns") or 0), header.get("NumberOfFrames")
    # colours may be stored with two channels subsampled by 2
    halved = "422" in str(header.get("PhotometricInterpretation"))
    claimed = int(int(header.get("Rows") or 0) * columns * int(frames or 1) * bits * (2 / 3 if halved else 1) / 8)
    if length < claimed:
        return _missing(claimed - length)
    # writers pad to an even length, which is less than a row
    if claimed > 0 and frames != 0 and not halved and length - claimed >= max(columns * bits // 8, 2):
        return f"it has {length - claimed} bytes of pixels more than the {claimed} that its header claims"
    return ""


def _missing(n_bytes: int) -> str:
    return f"it ends too early, {n_bytes} bytes of its pixels are missing"


def _encapsulated(stream: io.BufferedReader, size: int, header: pydicom.Dataset) -> str:
    """Walk over the fragments of compressed pixels without reading them, and return the fault; empty if none."""
    fragments = -1  # the first item is the offset table
    while len(start := stream.read(8)) == 8:
        tag = (int.from_bytes(start[:2], "little") << 16) + int.from_bytes(start[2:4], "little")
        length = int.from_bytes(start[4:], "little")
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or stream.tell() + length > size:
            return "it ends too early, within its compressed pixels"
        stream.seek(length, os.SEEK_CUR)
        fragments += 1
    short = fragments < int(header.get("NumberOfFrames") or 1)
    return "it ends too early, some of its compressed frames are missing" if short else ""

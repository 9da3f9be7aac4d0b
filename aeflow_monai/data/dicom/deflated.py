"""Limit the size of deflated DICOM files, which pydicom decompresses at once, however large they become."""

from __future__ import annotations

import io
import zlib
from typing import Any

import pydicom
from pydicom.filereader import read_dataset, read_preamble

from aeflow_monai.data.numbers import MAX_BYTES

__all__ = ["require_bounded"]

_READ = 2**20
_UNPACKED = 2**24


def require_bounded(stream: io.BufferedReader) -> None:
    """Refuse a deflated file that decompresses to more than an image may hold; nothing of it is kept in memory.

    Args:
        stream: a DICOM file, deflated or not; rewound to its beginning afterwards.

    Raises:
        MemoryError: the contents exceed two thirds of `MAX_BYTES`, the limit for an image of 64 bits.
        zlib.error: the file is damaged.
    """
    stream.seek(0)
    read_preamble(stream, force=True)
    meta = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=_behind_meta)
    if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        left = 2 * MAX_BYTES // 3
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        while packed := inflate.unconsumed_tail or stream.read(_READ):
            left -= len(inflate.decompress(packed, _UNPACKED))
            if left < 0:
                raise MemoryError
            if inflate.eof:
                break
    stream.seek(0)


def _behind_meta(tag: Any, *_: Any) -> bool:
    return bool(tag.group != 2)

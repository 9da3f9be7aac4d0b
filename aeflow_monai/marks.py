"""The mark by which files that this package has written are recognised among images."""

from __future__ import annotations

import functools
import os
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import nibabel as nib

__all__ = ["MARK", "has_mark", "mark_nifti"]

MARK = "aeflow_monai"
# Byte ranges of the text fields of NIfTI-1 and NIfTI-2: descrip and intent_name.
_NIFTI_TEXTS = {348: ((148, 228), (328, 344)), 540: ((240, 320), (508, 524))}
_NIFTI = (".nii", ".nii.gz")
_OTHERS = (".nrrd", ".nhdr", ".mha", ".mhd", ".png")
_READ = 4096  # bytes of a file, compressed or not, that contain the start of its header


def mark_nifti(header: nib.Nifti1Header, what: str) -> None:
    """Write the mark into two fields of a NIfTI header, since other tools keep one or the other.

    Args:
        header: the header, changed in place.
        what: kind of the file's content, such as "anomaly_map".

    Example:
        >>> import nibabel as nib
        >>> header = nib.Nifti1Header()
        >>> mark_nifti(header, "residual")
        >>> header["descrip"].item(), header["intent_name"].item()
        (b'aeflow_monai residual', b'aeflow_monai')
    """
    header["descrip"] = f"{MARK} {what}".encode()[:79]
    header["intent_name"] = MARK.encode()


def has_mark(path: str | Path) -> bool:
    r"""Return whether this package has written an image file, by its first bytes.

    In NIfTI the mark is in descrip and intent_name, in NRRD and MetaImage in a header field, in PNG in the text
    "Software". A file that cannot be read, or of another format, has none.

    Args:
        path: path of the file. The result is cached until its size or modification time changes.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "map.nrrd")
        >>> _ = path.write_text("NRRD0004\naeflow_monai:=anomaly_map\n")
        >>> has_mark(path)
        True
    """
    suffix = next((suffix for suffix in (*_NIFTI, *_OTHERS) if str(path).lower().endswith(suffix)), None)
    if suffix is None:
        return False
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            return False
        return _reads_mark(os.fspath(path), suffix, status.st_ino, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError, zlib.error):  # unreadable files are reported when they are processed
        return False


@functools.lru_cache(maxsize=2**18)
def _reads_mark(path: str, suffix: str, *_version: int) -> bool:
    """Return whether the mark is at its place for this format."""
    with Path(path).open("rb") as file:
        start = file.read(_READ)
    mark = MARK.encode()
    if suffix == ".nii.gz":
        start = zlib.decompressobj(wbits=31).decompress(start, max(_NIFTI_TEXTS))
    if suffix in _NIFTI:
        size = next((n for n in _NIFTI_TEXTS if n in (_whole(start, "little"), _whole(start, "big"))), None)
        return size is not None and any(start[a:b].startswith(mark) for a, b in _NIFTI_TEXTS[size])
    if suffix == ".png":
        return b"Software\0" + mark in start
    return any(line.replace(b" ", b"").startswith((mark + b":=", mark + b"=")) for line in start.splitlines())


def _whole(start: bytes, order: Literal["little", "big"]) -> int:
    return int.from_bytes(start[:4], order)

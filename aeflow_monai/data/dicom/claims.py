"""What the header of a DICOM file claims of its size and its slices, before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.data.dicom.frames import frames_of
from aeflow_monai.data.dicom.headers import ALL_BITS, DicomFile
from aeflow_monai.data.numbers import require_size

__all__ = ["size_problem", "understood"]


def understood(file: DicomFile) -> DicomFile:
    """The file, with a damage if what its header says of its slices breaks the standard.

    Args:
        file: as it was read.

    Returns:
        The same file, perhaps with a damage.
    """
    if file.damage or file.other or size_problem((file,), file.path):  # too many frames to look at each
        return file
    if (count := file.whole("NumberOfFrames")) is not None and count < 1:
        return file._replace(damage=f"its header claims {count} frames")
    if damage := _shifted(file):
        return file._replace(damage=damage)
    try:
        frames_of(file)
    except Exception:  # whatever a malformed value raises; its text may quote it
        return file._replace(damage="what its header says of its slices cannot be understood")
    return file


def _shifted(file: DicomFile) -> str:
    """What is said of numbers that do not begin at the lowest bit, which decoders pass over."""
    stored, high = file.whole("BitsStored"), file.whole("HighBit")
    if stored is None or high is None or high < stored or file.syntax not in ALL_BITS:
        return ""
    return f"its header claims {stored} bits up to bit {high}, so that nobody knows where its numbers begin"


def size_problem(files: Sequence[DicomFile], where: Path) -> str:
    """What is said of an image that takes too much memory.

    Args:
        files: that it is read from.
        where: they are, for the error.

    Returns:
        The error, by what the headers claim; empty if it is small enough.
    """
    rows, columns, channels, bits = (
        max(max(file.whole(keyword) or 1 for file in files), 1)
        for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    )
    try:
        require_size((columns, rows, sum(file.frames for file in files), channels), -(-bits // 8), str(where))
    except ValueError as error:
        return str(error)
    return ""

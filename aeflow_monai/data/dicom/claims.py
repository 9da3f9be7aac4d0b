"""Check the size and the slices that a DICOM header declares, before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.data.dicom.frames import frames_of
from aeflow_monai.data.dicom.headers import ALL_BITS, DicomFile
from aeflow_monai.data.numbers import require_size

__all__ = ["size_problem", "understood"]


def understood(file: DicomFile) -> DicomFile:
    """Return the file, marked as damaged if the description of its slices violates the standard.

    Args:
        file: the file as it was read.

    Returns:
        The same file, perhaps with a damage.
    """
    if file.damage or file.other or size_problem((file,), file.path):  # too many frames to check each
        return file
    if (count := file.whole("NumberOfFrames")) is not None and count < 1:
        return file._replace(damage=f"its header claims {count} frames")
    if damage := _shifted(file):
        return file._replace(damage=damage)
    try:
        frames_of(file)
    except Exception:  # malformed values raise various errors, whose text may quote them
        return file._replace(damage="what its header says of its slices cannot be understood")
    return file


def _shifted(file: DicomFile) -> str:
    """Return the damage of a file whose values do not start at bit 0, which decoders ignore; empty if they do."""
    stored, high = file.whole("BitsStored"), file.whole("HighBit")
    if stored is None or high is None or high < stored or file.syntax not in ALL_BITS:
        return ""
    return f"its header claims {stored} bits up to bit {high}, so that nobody knows where its numbers begin"


def size_problem(files: Sequence[DicomFile], where: Path) -> str:
    """Return the error for an image that takes too much memory.

    Args:
        files: the files that it is read from.
        where: their path, for the error.

    Returns:
        The error, based on the declared size; empty if the image is small enough.
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

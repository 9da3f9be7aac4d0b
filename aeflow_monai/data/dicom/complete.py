"""Check that a stack of slices is complete, by their instance numbers and by what their headers declare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from aeflow_monai.data.dicom.frames import Frame
from aeflow_monai.data.dicom.headers import DicomFile
from aeflow_monai.printable import counted

__all__ = ["AS_NIFTI", "GridError", "require_all", "require_declared"]

AS_NIFTI = "convert it to NIfTI, for example with dcm2niix, and give that"
_TOLERANCE = 0.1  # deviation from a multiple of the declared distance
_SHOWN = 3
_PARTS = ("EchoNumbers", "TemporalPositionIdentifier", "AcquisitionNumber")  # a series may have several of each


class GridError(ValueError):
    """The slices do not form a volume; the message states what was found and the remedy, but not the path."""


def require_all(frames: Sequence[Frame], others: Sequence[DicomFile], distance: float) -> None:
    """Refuse an incomplete stack of slices.

    Args:
        frames: evenly spaced slices, in their order.
        others: other files of the series, such as localizers, whose instance numbers are not missing.
        distance: distance between slices, in mm.

    Raises:
        GridError: names the missing numbers, or the element that declares more slices.
    """
    whole = f"If it is whole, {AS_NIFTI}"
    if missing := _missing_numbers(frames, others, distance):
        raise GridError(
            f"{len(frames)} slices whose numbers go up to {max(frame.number or 0 for frame in frames)}, without number "
            f"{', '.join(missing)}. Add what is missing. {whole}"
        )
    require_declared(frames)
    apart, thickness = frames[0].distance, frames[0].thickness
    if apart and thickness and apart > 0.9 * thickness:
        times = distance / apart
        if round(times) > 1 and abs(times - round(times)) < _TOLERANCE:
            raise GridError(
                f"slices {distance:.4g} mm apart, where SpacingBetweenSlices says {apart:.4g} mm: those "
                f"between are missing. Add the missing slices. {whole}"
            )


def _missing_numbers(frames: Sequence[Frame], others: Sequence[DicomFile], distance: float) -> list[str]:
    """Return the first missing instance numbers, counted from 1, and how many more; none if numbers are not unique."""
    numbers = {frame.number for frame in frames if frame.number is not None}
    if len(numbers) < len(frames) or min(numbers) < 0 or _is_part(sorted(numbers), frames[0].file, distance):
        return []
    last = max(numbers)
    numbers |= {number for file in others if 0 < (number := file.whole("InstanceNumber") or 0) < last}
    known = sorted({0, *numbers})
    missing = [n for before, after in pairwise(known) for n in range(before + 1, after)[:_SHOWN]]
    more = last - len(known) + 1 - len(missing[:_SHOWN])
    return [*(str(number) for number in missing[:_SHOWN]), *([f"and {more} more"] if more else [])]


def _is_part(numbers: Sequence[int], file: DicomFile, distance: float) -> bool:
    """Whether the numbers are those of one echo, time point or acquisition, numbered in blocks or interleaved."""
    first, step = numbers[0], numbers[-1] - numbers[-2]
    parts = {part for keyword in _PARTS if (part := file.whole(keyword))}
    if len(numbers) < 3 or any(after - before != step for before, after in pairwise(numbers)):
        return False
    if step == 1:
        return any(part > 1 and first == (part - 1) * len(numbers) + 1 for part in parts)
    thickness = file.numbers("SliceThickness", 1)
    # between adjoining slices none can be missing
    return first in parts and first <= step and thickness is not None and distance < 1.5 * thickness[0]


def require_declared(frames: Sequence[Frame]) -> None:
    """Refuse fewer slices than their headers declare.

    Args:
        frames: slices of one series.

    Raises:
        GridError: names the element and the number that it declares.
    """
    for keyword, declared, count in _declared(frames):
        if declared > count:
            raise GridError(
                f"{counted(count, 'slice')}, where {keyword} says that there are {declared}. Add the "
                f"missing slices. If it is whole, {AS_NIFTI}"
            )


def _declared(frames: Sequence[Frame]) -> list[tuple[str, int, int]]:
    """Return each element that declares a number of slices, with the declared and the actual number."""
    declared = []
    by_acquisition = defaultdict(list)
    for frame in frames:
        by_acquisition[frame.file.whole("AcquisitionNumber")].append(frame)
    for group in by_acquisition.values():
        if (number := group[0].file.whole("ImagesInAcquisition")) and group[0].file.frames == 1:
            declared.append(("ImagesInAcquisition", number, len(group)))
    if (number := frames[0].file.whole("NumberOfSlices")) and (frames[0].file.whole("NumberOfTimeSlices") or 1) == 1:
        declared.append(("NumberOfSlices", number, len(frames)))
    return declared

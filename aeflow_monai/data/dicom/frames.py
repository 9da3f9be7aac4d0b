"""Frames: the slices of a DICOM file as its header describes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from aeflow_monai.data.dicom.headers import DicomFile, numbers_of, quiet, whole_of

__all__ = ["Frame", "frames_of", "has_place"]

# What distinguishes images at one position: element in the header, and its place in the functional groups.
_KINDS = (
    ("EchoNumbers", "", ""),
    ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("InversionTime", "MRModifierSequence", "InversionTimes"),
    ("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("ImageType", "MRImageFrameTypeSequence", "FrameType"),
    ("AcquisitionTime", "FrameContentSequence", "FrameAcquisitionDateTime"),
)


class Frame(NamedTuple):
    """A slice as its header describes it.

    Attributes:
        name: name of its file, with the frame number if there are several.
        file: the file that holds it.
        offset: index of the frame in its file, from 0.
        position: centre of its first pixel, (3,), in mm, LPS; None if absent.
        orientation: unit vectors along a row and a column, (6,); None if absent.
        spacing: spacing of rows and of columns, (2,), in mm; None if absent.
        thickness: of the slice, in mm; None if absent.
        distance: to the next slice, in mm, as the header says; None if it does not.
        number: number in its series or stack, from 1; None if absent.
        stack: the stack that it belongs to, if its file has several.
        kinds: values that distinguish it from other slices at the same position, by element.
    """

    name: str
    file: DicomFile
    offset: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float | None
    distance: float | None
    number: int | None
    stack: str
    kinds: dict[str, str]


def has_place(file: DicomFile) -> bool:
    """Whether the header gives the position of the first slice."""
    if file.items("PerFrameFunctionalGroupsSequence"):
        return _in_groups(file, 0).position is not None
    return file.numbers("ImagePositionPatient", 3) is not None


def frames_of(file: DicomFile) -> list[Frame]:
    """Return all slices of a file, in the file's order."""
    if file.items("PerFrameFunctionalGroupsSequence"):
        return [_in_groups(file, index) for index in range(file.frames)]
    kinds = {keyword: str(value) for keyword, *_ in _KINDS if (value := file.get(keyword)) is not None}
    frame = Frame(
        file.path.name,
        file,
        0,
        file.numbers("ImagePositionPatient", 3),
        file.numbers("ImageOrientationPatient", 6),
        file.numbers("PixelSpacing", 2),
        _length(file.get("SliceThickness")),
        _length(file.get("SpacingBetweenSlices")),
        file.whole("InstanceNumber"),
        "",
        kinds,
    )
    if file.frames == 1:
        return [frame]
    return [
        frame._replace(name=f"frame {i + 1} of {file.path.name}", offset=i, position=None, number=None)
        for i in range(file.frames)
    ]


def _in_groups(file: DicomFile, index: int) -> Frame:
    with quiet():
        return _from_groups(file, index)


def _from_groups(file: DicomFile, index: int) -> Frame:
    def element(sequence: str, keyword: str) -> Any:
        for group in _groups(file, index):
            try:
                if (items := group.get(sequence)) and (value := items[0].get(keyword)) not in (None, ""):
                    return value
            except Exception:  # values that violate the standard make pydicom raise various errors
                return None
        return None

    # a file of one frame is a slice, numbered within the series
    number = element("FrameContentSequence", "InStackPositionNumber") if file.frames > 1 else file.get("InstanceNumber")
    return Frame(
        f"frame {index + 1} of {file.path.name}",
        file,
        index,
        numbers_of(element("PlanePositionSequence", "ImagePositionPatient"), 3),
        numbers_of(element("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        numbers_of(element("PixelMeasuresSequence", "PixelSpacing"), 2),
        _length(element("PixelMeasuresSequence", "SliceThickness")),
        _length(element("PixelMeasuresSequence", "SpacingBetweenSlices")),
        whole_of(number),
        str(element("FrameContentSequence", "StackID") or ""),
        {
            keyword: str(value)
            for keyword, sequence, inner in _KINDS
            if sequence and (value := element(sequence, inner)) is not None
        },
    )


def _length(value: Any) -> float | None:
    numbers = numbers_of(value, 1)
    return abs(numbers[0]) if numbers and numbers[0] else None


def _groups(file: DicomFile, index: int) -> Iterator[Any]:
    """Yield the functional groups of a frame, per-frame groups before shared ones."""
    per_frame = file.items("PerFrameFunctionalGroupsSequence")
    if index < len(per_frame):
        yield per_frame[index]
    yield from file.items("SharedFunctionalGroupsSequence")[:1]

"""Read the headers of DICOM files: the kind of a file, and whether it is complete."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
from pydicom.uid import UID

from aeflow_monai.data.dicom.deflated import require_bounded
from aeflow_monai.data.dicom.extent import NATIVE, pixels_of

__all__ = [
    "ALL_BITS",
    "DicomFile",
    "numbers_of",
    "quiet",
    "read_dataset",
    "read_header",
    "require_libraries",
    "whole_of",
]

# Elements that are read; patient and study only group the series, and are never written anywhere.
_TAGS = (
    *(
        "SOPClassUID",
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SeriesNumber",
        "InstanceNumber",
        "Modality",
    ),
    *("ImageType", "AcquisitionNumber", "ImagesInAcquisition", "NumberOfSlices", "NumberOfTimeSlices"),
    *(
        "ConcatenationUID",
        "InConcatenationTotalNumber",
        "FrameOfReferenceUID",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
    ),
    *("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio", "SliceThickness", "SpacingBetweenSlices"),
    *("EchoNumbers", "EchoTime", "InversionTime", "TemporalPositionIdentifier", "TriggerTime", "DiffusionBValue"),
    *("AcquisitionTime", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit"),
    *("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Encodings that preserve the unused bits of a stored value.
ALL_BITS = (*NATIVE, pydicom.uid.DeflatedExplicitVRLittleEndian, pydicom.uid.RLELossless)
_NO_IMAGE = {
    "Segmentation Storage": "a segmentation, not an image",
    "Label Map Segmentation Storage": "a segmentation, not an image",
    "RT Dose Storage": "a radiotherapy dose, not an image",
    "Media Storage Directory Storage": "an index of files (DICOMDIR), not an image",
}


class DicomFile(NamedTuple):
    """A DICOM file with the elements of its header that are used.

    Attributes:
        path: path of the file.
        header: the elements that are used; empty if the header cannot be read.
        damage: description of the damage; empty if there is none.
        other: what the file is if it is not an image, for example a report; empty if it is one.
    """

    path: Path
    header: pydicom.Dataset
    damage: str = ""
    other: str = ""

    def get(self, keyword: str) -> Any:
        """Return the value of an element; None if it is absent, empty or invalid."""
        try:
            value = self.header.get(keyword)
        except Exception:  # values that violate the standard make pydicom raise various errors
            return None
        return None if value is None or value == "" else value

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """Return the finite numbers of an element; None unless there are `count`."""
        return numbers_of(self.get(keyword), count)

    def whole(self, keyword: str) -> int | None:
        """Return the whole number of an element; None if its value is not one."""
        return whole_of(self.get(keyword))

    def items(self, keyword: str) -> Sequence[pydicom.Dataset]:
        """Return the items of a sequence; empty if it is absent or not a sequence."""
        value = self.get(keyword)
        return value if isinstance(value, pydicom.Sequence) else ()

    def text(self, keyword: str) -> str:
        """Return the text of an element; empty if it is absent."""
        return str(self.get(keyword) or "").strip()

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.whole("NumberOfFrames") or 1

    @property
    def kind(self) -> str:
        """Name of the SOP class in the standard; empty if it is private or absent."""
        meta = getattr(self.header, "file_meta", {})
        uid = self.text("SOPClassUID") or str(meta.get("MediaStorageSOPClassUID") or "")
        return _class_name(uid)

    @property
    def image_type(self) -> tuple[str, ...]:
        """Values of ImageType, such as ORIGINAL, PRIMARY, LOCALIZER."""
        value = self.get("ImageType") or ()
        return tuple(str(part).upper() for part in ([value] if isinstance(value, str) else value))

    @property
    def syntax(self) -> str:
        """Transfer syntax UID; empty if it is absent."""
        return str(getattr(self.header, "file_meta", {}).get("TransferSyntaxUID") or "")

    @property
    def in_colour(self) -> bool:
        """Whether the pixels are in colour."""
        return (self.whole("SamplesPerPixel") or 1) > 1 or self.text("PhotometricInterpretation") == "PALETTE COLOR"


@lru_cache(maxsize=256)
def _class_name(uid: str) -> str:
    with quiet():  # a damaged length may swallow the rest of the header into this value
        name = UID(uid).name if uid else ""
    return "" if name == uid else str(name)


def numbers_of(value: Any, count: int) -> tuple[float, ...] | None:
    """Return the finite numbers in the value of an element; None unless there are `count`."""
    try:
        parts = tuple(float(part) for part in ([value] if count == 1 and not hasattr(value, "__len__") else value))
    except (TypeError, ValueError):
        return None
    return parts if len(parts) == count and all(abs(part) < 1e9 for part in parts) else None  # False for NaN


def whole_of(value: Any) -> int | None:
    """Return the whole number in the value of an element; None if it is not one."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from quoting invalid values in warnings and its log, since they may identify the patient."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    if all(logger.level > logging.CRITICAL for logger in loggers):  # nested in another `quiet`
        yield
        return
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def require_libraries() -> None:
    """Refuse to read DICOM with libraries that are too old.

    Raises:
        ImportError: names the required versions.
    """
    found = {}
    for package, least in (("pydicom", (3, 0)), ("highdicom", (0, 24))):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
        if tuple(int(part) for part in found[package].split(".")[:2] if part.isdigit()) < least:
            raise ImportError(
                f"DICOM is read with pydicom 3.0 and highdicom 0.24 or newer; this environment has {package} "
                f"{found[package]}, as MONAI Label needs it. Convert the images to NIfTI, or read them in an "
                "environment without MONAI Label."
            )


def read_header(path: Path) -> DicomFile:
    """Read the header of a file, and check that its pixel data are complete.

    Args:
        path: path of the file.

    Returns:
        The file. One that cannot be read raises no error, but has a `damage`.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        return DicomFile(path, pydicom.Dataset(), f"it cannot be opened: {error.strerror}")
    with stream, quiet():
        if (size := os.fstat(stream.fileno()).st_size) == 0:
            return DicomFile(path, pydicom.Dataset(), "the file is empty")
        try:
            header = _parse(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
            pixels, damage = pixels_of(stream, header, size)
            _convert(header)
            _convert(header.file_meta)
        except MemoryError:
            return DicomFile(path, pydicom.Dataset(), "its deflated content takes too much memory")
        except Exception:  # the text of the error may quote a value
            return DicomFile(path, pydicom.Dataset(), "its header cannot be read")
    file = DicomFile(path, header, damage)
    if file.kind in _NO_IMAGE:
        return file._replace(other=_NO_IMAGE[file.kind])
    if damage or (pixels and file.whole("Rows") and file.whole("Columns")):
        return file
    if pixels:
        return file._replace(damage="its header does not say how many rows and columns it has")
    if "Image Storage" in file.kind or (not file.kind and file.get("Rows")):
        return file._replace(damage="it ends before its pixels")
    if not file.kind and not file.text("SOPClassUID"):
        return file._replace(damage="its header ends too early, or it is no DICOM file")
    name = file.kind.removesuffix(" Storage").lower() or "private data"
    return file._replace(other=f"{name}, not an image")


def read_dataset(path: Path) -> pydicom.Dataset:
    """Read a whole file, including its pixels.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream, quiet():
            return _parse(stream)
    except Exception:
        raise ValueError(f"Expected a DICOM image in {path}; got a file that cannot be read. Get it again.") from None


def _convert(header: pydicom.Dataset) -> None:
    """Let pydicom convert all values now, while it is quiet, and remove those that it cannot convert."""
    for tag in list(header.keys()):
        try:
            _ = header[tag].value
        except Exception:  # values that violate the standard make it raise various errors
            del header[tag]


def _parse(stream: io.BufferedReader, **options: Any) -> pydicom.Dataset:
    stream.seek(128)
    magic = stream.read(4) == b"DICM"
    require_bounded(stream)
    # old devices write no preamble; such a file has to be recognised by its elements
    data = pydicom.dcmread(stream, force=not magic, **options)
    if not magic and not (data.get("SOPClassUID") or data.get("Rows") or data.get("file_meta")):
        raise ValueError
    if not getattr(data.file_meta, "TransferSyntaxUID", None):
        little = data.original_encoding[1]
        implicit = data.original_encoding[0]
        data.file_meta.TransferSyntaxUID = UID(
            pydicom.uid.ImplicitVRLittleEndian
            if implicit
            else pydicom.uid.ExplicitVRLittleEndian
            if little
            else pydicom.uid.ExplicitVRBigEndian
        )
    return data

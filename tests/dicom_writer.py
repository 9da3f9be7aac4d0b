"""DICOM files on disk, written for the tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items

SHAPE = (96, 80)  # rows and columns


def slice_of(k: int, series: str = "1.2.3.4", number: int = 1, **tags: Any) -> Dataset:
    """One slice of 2 mm by 1.5 mm pixels, 3 mm from the next; pixel (row, column) holds 100 k + row + column."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = f"{series}.{number}.{k + 1}"
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    image = Dataset()
    image.file_meta = meta
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SeriesNumber = "1.2.3", f"{series}.{number}", number
    image.SeriesDescription, image.Modality, image.InstanceNumber = f"T{number}", "MR", k + 1
    image.PatientID, image.PatientName = "17", "nobody"
    image.Rows, image.Columns = SHAPE
    image.PixelSpacing, image.SliceThickness = [2, 1.5], 3
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -12, 3 * k]
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    for tag, value in tags.items():
        setattr(image, tag, value)
    image.PixelData = pixels(k).tobytes()
    return image


def pixels(k: int) -> np.ndarray[Any, Any]:
    return (100 * k + np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1]))).astype(np.uint16)


def write_series(folder: Path, slices: Sequence[int] = range(6), extension: str = ".dcm", **tags: Any) -> Path:
    """Slices in an order of names that is not that of their positions."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, k in enumerate(slices):
        name = f"{tags.get('number', 1)}{len(slices) - i:03d}{extension}"
        slice_of(k, **tags).save_as(folder / name, enforce_file_format=True)
    return folder


def write(image: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def with_pixels(image: Dataset, values: Any) -> Dataset:
    """The slice with other pixels of 16 bits, unsigned or signed, (rows, columns) or (frames, rows, columns)."""
    values = np.asarray(values)
    image.Rows, image.Columns = values.shape[-2:]
    image.PixelRepresentation, image.BitsStored, image.HighBit = int(values.dtype.kind == "i"), 16, 15
    image.PixelData = values.tobytes()
    return image


def enhanced(frames: list[int], **changes: Any) -> Dataset:
    """An enhanced MR image of some slices, each with a rescale of its own."""
    image = with_pixels(slice_of(0, SOPClassUID=uid.EnhancedMRImageStorage), np.stack([pixels(k) for k in frames]))
    for element in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(image, element)
    image.NumberOfFrames = len(frames)
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Items([Dataset()]), Items([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence[0].PixelSpacing = [2, 1.5]
    image.SharedFunctionalGroupsSequence = Items([shared])
    groups = []
    for i, k in enumerate(frames):
        group = Dataset()
        group.PlanePositionSequence, group.FrameContentSequence = Items([Dataset()]), Items([Dataset()])
        group.PixelValueTransformationSequence = Items([Dataset()])
        group.PlanePositionSequence[0].ImagePositionPatient = [-10, -12, 3 * k]
        group.FrameContentSequence[0].StackID = changes.get("stacks", "1" * len(frames))[i]
        group.FrameContentSequence[0].InStackPositionNumber = k + 1
        group.FrameContentSequence[0].TemporalPositionIndex = i // 6 + 1
        group.PixelValueTransformationSequence[0].RescaleSlope = k + 1
        group.PixelValueTransformationSequence[0].RescaleIntercept = -k
        groups.append(group)
    image.PerFrameFunctionalGroupsSequence = Items(groups)
    return image

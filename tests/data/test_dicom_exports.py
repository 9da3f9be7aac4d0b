"""DICOM as archives and anonymizers hand it out: the right volume, or a refusal that names file and cause."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_writer import SHAPE, enhanced, pixels, slice_of, write, write_series
from pydicom import uid
from pydicom.dataset import Dataset

from aeflow_monai.data import LoadCased, find_images

LOAD = LoadCased("image")


def load(path: Path) -> Any:
    return LOAD({"image": str(path)})["image"]


def write_each(folder: Path, change: Callable[[int, Dataset], None]) -> Path:
    """Six slices, each with a change."""
    for k in range(6):
        image = slice_of(k)
        change(k, image)
        write(image, folder / f"{k}.dcm")
    return folder


# Bits of a number


@pytest.mark.parametrize("compressed", [False, True])
def test_bits_beside_those_of_a_number(tmp_path: Path, compressed: bool) -> None:
    """As of an overlay in the upper bits."""
    image = slice_of(2)
    image.PixelData = (pixels(2) | 0xA000).tobytes()
    if compressed:
        image.BitsStored = 16
        image.compress(uid.RLELossless, generate_instance_uid=False)
        image.BitsStored = 12
    np.testing.assert_array_equal(load(write(image, tmp_path / "a.dcm"))[0, ..., 0].numpy(), pixels(2).T)


def test_negative_numbers_of_twelve_bits(tmp_path: Path) -> None:
    values = pixels(2).astype(np.int16) - 300
    image = slice_of(2, PixelRepresentation=1, RescaleSlope=1, RescaleIntercept=-24)
    image.PixelData = (values & 0xFFF).astype(np.uint16).tobytes()
    np.testing.assert_array_equal(load(write(image, tmp_path / "a.dcm"))[0, ..., 0].numpy(), values.T - 24)


def test_numbers_that_begin_at_another_bit(tmp_path: Path) -> None:
    image = slice_of(2, HighBit=15)
    image.PixelData = (pixels(2) << 4).tobytes()
    with pytest.raises(ValueError, match=r"a\.dcm; got a damaged .* claims 12 bits up to bit 15, so that nobody knows"):
        load(write(image, tmp_path / "a.dcm"))


def test_more_pixels_than_the_header_says(tmp_path: Path) -> None:
    image = slice_of(2, Rows=SHAPE[0] // 2)
    with pytest.raises(ValueError, match=r"a\.dcm; .* 7680 bytes of pixels more than the 7680 that its header claims"):
        load(write(image, tmp_path / "a.dcm"))


# Slices of several images


@pytest.mark.parametrize(
    ("keyword", "values", "what"),
    [
        ("PatientID", ("17", "18"), "patients"),
        ("StudyInstanceUID", ("1.2.3", "1.2.4"), "studies"),
        ("SeriesNumber", (1, 2), "series"),
        ("Modality", ("MR", "CT"), "modalities"),
        ("FrameOfReferenceUID", ("1.2.3", "1.2.4"), "frames of reference"),
    ],
)
def test_slices_of_two_under_one_identifier(tmp_path: Path, keyword: str, values: tuple[Any, Any], what: str) -> None:
    folder = write_each(tmp_path / "a", lambda k, image: setattr(image, keyword, values[k % 2]))
    with pytest.raises(ValueError, match=f"got slices of 2 {what}: 0.dcm, 2.dcm, 4.dcm differ from the other 3"):
        load(folder)


def test_two_series_without_an_identifier(tmp_path: Path) -> None:
    def change(k: int, image: Dataset) -> None:
        del image.SeriesInstanceUID
        image.SeriesNumber = 1 + k % 2

    with pytest.raises(ValueError, match="got slices of 2 series"):
        load(write_each(tmp_path / "a", change))


def test_a_missing_first_slice_of_enhanced_files_of_one_frame(tmp_path: Path) -> None:
    for k in range(1, 6):
        image = enhanced([k])
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
        image.InstanceNumber = k + 1
        image.PerFrameFunctionalGroupsSequence[0].FrameContentSequence[0].InStackPositionNumber = 1
        write(image, tmp_path / f"a/{k}.dcm")
    with pytest.raises(ValueError, match="got 5 slices whose numbers go up to 6, without number 1"):
        load(tmp_path / "a")


def test_a_part_of_a_concatenation_that_does_not_say_of_how_many(tmp_path: Path) -> None:
    image = enhanced([0, 1, 2])
    image.ConcatenationUID, image.InConcatenationNumber = "1.2.3.4", 1
    with pytest.raises(ValueError, match=r"a\.dcm; got one of the parts of an image"):
        load(write(image, tmp_path / "a.dcm"))


def test_the_thickness_of_a_frame_in_its_groups(tmp_path: Path) -> None:
    image = enhanced([2])
    image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 5
    assert load(write(image, tmp_path / "a.dcm")).affine[2, 2] == 5


# Numbers of slices


@pytest.mark.parametrize(
    ("keyword", "part", "first", "step"),
    [("AcquisitionNumber", 3, 13, 1), ("EchoNumbers", 2, 2, 2), ("TemporalPositionIdentifier", 1, 1, 4)],
)
def test_numbers_of_an_echo_or_acquisition_in_a_folder_of_its_own(
    tmp_path: Path, keyword: str, part: int, first: int, step: int
) -> None:
    def change(k: int, image: Dataset) -> None:
        image.InstanceNumber = first + step * k
        setattr(image, keyword, part)

    assert load(write_each(tmp_path / "a", change)).shape[-1] == 6


@pytest.mark.parametrize(("first", "step", "apart"), [(7, 1, 3), (2, 1, 3), (1, 2, 6)])
def test_numbers_that_no_header_explains(tmp_path: Path, first: int, step: int, apart: float) -> None:
    def change(k: int, image: Dataset) -> None:
        image.InstanceNumber, image.EchoNumbers = first + step * k, 1
        image.ImagePositionPatient = [-10, -12, apart * k]

    with pytest.raises(ValueError, match=r"without number [12]"):
        load(write_each(tmp_path / "a", change))


# Folders


def test_dicom_files_behind_many_others(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "z")
    for i in range(40):
        (folder / f"{i:04d}.txt").write_text("notes")
    assert [item["case"] for item in find_images(tmp_path)] == ["z"]

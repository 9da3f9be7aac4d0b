"""DICOM as real files of all kinds: the right volume, or a refusal that names file and cause."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_writer import SHAPE, enhanced, pixels, slice_of, with_pixels, write, write_series
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from aeflow_monai.data import LoadCased, find_images

VOLUME = np.stack([pixels(k).T for k in range(6)], -1).astype(np.float32)  # (X, Y, Z) as `write_series` writes it
LOAD = LoadCased("image")


def load(path: Path) -> Any:
    return LOAD({"image": str(path)})["image"]


def problem_of(folder: Path) -> str:
    """What is said of a folder, when it is listed beside a well one, and when it is read."""
    write_series(folder.parent / "well")
    items = find_images(folder.parent)
    problems = {item["case"]: str(item.get("problem", "")) for item in items}
    assert problems.pop("well") == ""
    with pytest.raises(ValueError, match=r"^Expected ") as raised:
        load(folder)
    (said,) = problems.values()
    assert said == str(raised.value)
    return said


def test_affine_is_that_of_the_header(tmp_path: Path) -> None:
    image = load(write_series(tmp_path / "a"))
    assert image.affine.tolist() == [[-1.5, 0, 0, 10], [0, -2, 0, 12], [0, 0, 3, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(image[0].numpy(), VOLUME)
    assert image.dtype.is_floating_point
    assert set(image.meta) >= {"affine", "original_affine", "spatial_shape", "space", "filename_or_obj"}
    assert not any("0010" in str(key) for key in image.meta)


# Slices that are missing, doubled, damaged


@pytest.mark.parametrize("missing", [0, 1, 3], ids=["first", "second", "middle"])
def test_a_missing_slice(tmp_path: Path, missing: int) -> None:
    said = problem_of(write_series(tmp_path / "ill", [k for k in range(6) if k != missing]))
    assert "missing" in said
    assert str(tmp_path / "ill") in said


def test_a_number_that_is_damaged_ends_at_once(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ill")
    file = sorted(folder.iterdir())[3]
    slice_ = dcmread(file)
    slice_.InstanceNumber = 2**31 - 1
    slice_.save_as(file)
    said = problem_of(folder)
    assert "slices whose numbers go up to 2147483647, without number 3, 7, 8" in said
    assert f" and {2**31 - 7 - 3} more" in said


@pytest.mark.parametrize("missing", [0, 5], ids=["first", "last"])
def test_a_missing_end_where_the_header_declares_the_number(tmp_path: Path, missing: int) -> None:
    kept = [k for k in range(6) if k != missing]
    assert "missing" in problem_of(write_series(tmp_path / "ill", kept, ImagesInAcquisition=6))


def test_every_second_slice_missing_and_numbered_anew(tmp_path: Path) -> None:
    for i, k in enumerate((0, 2, 4)):
        image = slice_of(k, SpacingBetweenSlices=3)
        image.InstanceNumber = i + 1
        write(image, tmp_path / f"ill/{i}.dcm")
    assert "6 mm apart, where SpacingBetweenSlices says 3 mm" in problem_of(tmp_path / "ill")


def test_every_second_frame_missing(tmp_path: Path) -> None:
    image = enhanced([0, 2, 4])
    for group in image.PerFrameFunctionalGroupsSequence:
        del group.FrameContentSequence
    measures = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SliceThickness = measures.SpacingBetweenSlices = 3
    write(image, tmp_path / "ill/a.dcm")
    assert "6 mm apart, where SpacingBetweenSlices says 3 mm" in problem_of(tmp_path / "ill")


def test_numbers_of_localizers_are_not_missing(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a", range(1, 6))
    write(slice_of(0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), folder / "scout.dcm")
    assert load(folder).shape[-1] == 5


def test_a_number_out_of_all_range_does_not_hang(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ill", range(5))
    write(slice_of(5, InstanceNumber=2**31 - 1), folder / "far.dcm")
    assert "without number 6, 7, 8, and 2147483638 more. Add" in problem_of(folder)


def test_uneven_distances_name_the_files(tmp_path: Path) -> None:
    said = problem_of(write_series(tmp_path / "ill", [0, 1, 2, 5, 6, 7]))
    assert "uneven distances of its 6 slices: 3 mm mostly, but 9 mm between 1004.dcm and 1003.dcm." in said


def test_rounded_positions_are_even(tmp_path: Path) -> None:
    for k in range(6):
        write(slice_of(k, ImagePositionPatient=[-10, -12, round(10 * k / 3, 1)]), tmp_path / f"a/{k}")
    assert load(tmp_path / "a").shape[-1] == 6


@pytest.mark.parametrize("keyword", ["EchoNumbers", "TemporalPositionIdentifier", "AcquisitionNumber"])
def test_several_slices_at_one_position(tmp_path: Path, keyword: str) -> None:
    folder = write_series(tmp_path / "ill", **{keyword: 1})
    for k in range(6):
        write(slice_of(k, InstanceNumber=k + 7, **{keyword: 2}), folder / f"later{k}.dcm")
    said = problem_of(folder)
    assert "several slices at one position: 12 slices at 6 positions, for example 1006.dcm and later0.dcm" in said
    assert f"which differ in {keyword}" in said


@pytest.mark.parametrize(
    ("keyword", "values", "said"),
    [
        ("EchoNumbers", (1, 2), "slices of 2 echoes"),
        ("EchoTime", (10, 90), "slices of 2 echo times"),
        ("InversionTime", (900, 2500), "slices of 2 inversion times"),
        ("TemporalPositionIdentifier", (120, 121), "slices of 2 times"),
        ("DiffusionBValue", (0, 1000), "slices of 2 b-values"),
    ],
)
def test_one_half_of_another_echo_or_time(tmp_path: Path, keyword: str, values: tuple[int, int], said: str) -> None:
    for k in range(6):
        write(slice_of(k, **{keyword: values[k // 3]}), tmp_path / f"ill/{k}.dcm")
    assert said in problem_of(tmp_path / "ill")


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("InversionTime", (250, 260, 270, 260, 280, 290)),  # as it follows the heart
        ("InversionTime", (100, 200, 400, 800, 1600, 3200)),
        ("EchoTime", (10, "10.0", 10.02, 10, 10, None)),
        ("TemporalPositionIdentifier", (1, None, None, 1, 1, 1)),
    ],
)
def test_values_of_single_slices_are_no_parts(tmp_path: Path, keyword: str, values: tuple[Any, ...]) -> None:
    for k, value in enumerate(values):
        write(slice_of(k, **({} if value is None else {keyword: value})), tmp_path / f"a/{k}.dcm")
    np.testing.assert_array_equal(load(tmp_path / "a")[0], VOLUME)


def test_a_slice_twice(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ill")
    (folder / "copy.dcm").write_bytes((folder / "1003.dcm").read_bytes())
    assert "7 slices at 6 positions, for example 1003.dcm and copy.dcm" in problem_of(folder)


@pytest.mark.parametrize("size", [0, 100, 400, 5000], ids=["empty", "preamble", "header", "pixels"])
@pytest.mark.parametrize("extension", ["", ".dcm"])
@pytest.mark.parametrize("which", ["1001", "1003", "1006"], ids=["last", "middle", "first"])
def test_a_file_that_was_cut(tmp_path: Path, size: int, extension: str, which: str) -> None:
    file = write_series(tmp_path / "ill", extension=extension) / f"{which}{extension}"
    file.write_bytes(file.read_bytes()[:size])
    assert f"1 damaged: {file.name} (" in problem_of(tmp_path / "ill")


def test_a_compressed_file_that_was_cut(tmp_path: Path) -> None:
    for k in range(4):
        image = slice_of(k)
        image.compress(uid.RLELossless)
        write(image, tmp_path / f"ill/{k}.dcm")
    file = tmp_path / "ill/3.dcm"
    file.write_bytes(file.read_bytes()[:-60])
    assert "1 damaged: 3.dcm (it ends too early" in problem_of(tmp_path / "ill")


def test_pixels_that_no_decoder_takes(tmp_path: Path) -> None:
    folder = tmp_path / "ill"
    for k in range(3):
        image = slice_of(k)
        image.compress(uid.JPEG2000Lossless)
        write(image, folder / f"{k}.dcm")
    content = (folder / "1.dcm").read_bytes()
    at = content.index(b"\xff\x4f\xff\x51")
    (folder / "1.dcm").write_bytes(content[:at] + bytes(40) + content[at + 40 :])
    message = r"got pixels that cannot be decoded \(JPEG 2000.*gdcmconv"
    with pytest.raises(ValueError, match=rf"Expected a DICOM image in {folder / '1.dcm'}; {message}"):
        load(folder)


def test_text_beside_the_slices_is_no_damage(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a", extension="")
    (folder / "README").write_text("of the scan")
    assert load(folder).shape[-1] == 6


# Slices that do not belong together


def test_other_sizes_orientations_and_resolutions(tmp_path: Path) -> None:
    for name, tags in {
        "sizes": {},
        "orientations": {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        "sizes of pixels": {"PixelSpacing": [1, 1]},
    }.items():
        folder = write_series(tmp_path / name / "ill")
        odd = slice_of(6, **tags)
        if not tags:
            with_pixels(odd, pixels(0)[:50])
        write(odd, folder / "odd.dcm")
        assert f"slices of 2 {name}: odd.dcm differ from the other 6" in problem_of(folder)


def test_no_position(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ill")
    odd = slice_of(6)
    del odd.ImagePositionPatient
    write(odd, folder / "odd.dcm")
    assert "1 of 7 slices without ImagePositionPatient (odd.dcm)" in problem_of(folder)


def test_a_stack_in_colour(tmp_path: Path) -> None:
    for k in range(3):
        image = slice_of(k, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
        image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
        image.PixelData = bytes(3 * SHAPE[0] * SHAPE[1])
        write(image, tmp_path / f"ill/{k}.dcm")
    assert "slices in colour (0.dcm, 1.dcm, 2.dcm)" in problem_of(tmp_path / "ill")


def test_no_frame_of_reference_is_needed(tmp_path: Path) -> None:
    assert "FrameOfReferenceUID" not in slice_of(0)
    assert load(write_series(tmp_path / "a")).shape[-1] == 6


def test_tilted_gantry(tmp_path: Path) -> None:
    tilt = np.deg2rad(20)
    for k in range(6):
        write(slice_of(k, ImageOrientationPatient=[1, 0, 0, 0, np.cos(tilt), -np.sin(tilt)]), tmp_path / f"a/{k}.dcm")
    affine = load(tmp_path / "a").affine.numpy()
    for k in (0, 5):  # where the header puts the first pixel of a slice, in RAS
        np.testing.assert_allclose(affine @ [0, 0, k, 1], [10, 12, 3 * k, 1], atol=1e-5)
    np.testing.assert_allclose(affine[:3, 1], [0, -2 * np.cos(tilt), -2 * np.sin(tilt)], atol=1e-5)


# Values


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    for k in range(6):
        slope = 1.0 if k == 0 else 0.0005 * k
        write(slice_of(k, RescaleSlope=slope, RescaleIntercept=-1.5), tmp_path / f"a/{k}.dcm")
    slopes = np.array([1.0, *(0.0005 * k for k in range(1, 6))])
    np.testing.assert_allclose(load(tmp_path / "a")[0].numpy(), VOLUME * slopes - 1.5, rtol=1e-5)


def test_the_slope_of_a_frame_counts_before_that_of_the_file(tmp_path: Path) -> None:
    plain, both = enhanced([*range(6)]), enhanced([*range(6)])
    both.RescaleSlope, both.RescaleIntercept, both.RescaleType = 1, 0, "US"
    images = [load(write(image, tmp_path / f"{name}.dcm"))[0] for name, image in (("plain", plain), ("both", both))]
    np.testing.assert_array_equal(*map(np.asarray, images))
    assert not np.array_equal(images[0].numpy(), VOLUME)


def test_table_of_modality_values(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [1000, 0, 16], "US"
    table.add_new("LUTData", "US", [3 * value for value in range(1000)])
    for k in range(3):
        write(slice_of(k, ModalityLUTSequence=Sequence([table])), tmp_path / f"a/{k}.dcm")
    np.testing.assert_allclose(load(tmp_path / "a")[0].numpy(), 3 * VOLUME[..., :3])


@pytest.mark.parametrize("shape", ["", "INVERSE", "IDENTITY"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_monochrome1_is_inverted(tmp_path: Path, dtype: Any, shape: str) -> None:
    """A bright square in a dark surrounding: low values are bright in the one file, high ones in the other."""
    shown = np.zeros((40, 30), np.int64)
    shown[10:20, 5:15] = 1000
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for name, values in (("MONOCHROME2", shown + low), ("MONOCHROME1", high - shown)):
        image = with_pixels(slice_of(0, PhotometricInterpretation=name), values.astype(dtype))
        if shape and name == "MONOCHROME1":
            image.PresentationLUTShape = shape
        image.RescaleSlope, image.RescaleIntercept = 2, -7
        write(image, tmp_path / f"{name}.dcm")
    one, two = load(tmp_path / "MONOCHROME1.dcm"), load(tmp_path / "MONOCHROME2.dcm")
    np.testing.assert_allclose(one.numpy(), two.numpy())
    assert one[0, 10, 15, 0] - one[0, 0, 0, 0] == 2000  # column 10, row 15 lies in the square


@pytest.mark.parametrize("written", [-2000, 65536 - 2000])
def test_padding_takes_the_lowest_value_of_the_rest(tmp_path: Path, written: int) -> None:
    for k in range(3):
        values = (pixels(k) % 500).astype(np.int16)
        values[:5] = -2000
        image = with_pixels(slice_of(k, RescaleSlope=1, RescaleIntercept=-1024), values)
        image.add_new(0x00280120, "SS" if written < 0 else "US", written)
        write(image, tmp_path / f"a/{k}.dcm")
    volume = load(tmp_path / "a")[0].numpy()
    assert volume.min() == -1019  # of row 5
    assert (volume[:, :5] == -1019).all()


def test_big_endian_and_files_without_preamble(tmp_path: Path) -> None:
    for k in range(3):
        image = slice_of(k)
        image.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
        image.PixelData = pixels(k).astype(">u2").tobytes()
        write(image, tmp_path / f"big/{k}.dcm")
        (tmp_path / "bare").mkdir(exist_ok=True)
        bare = slice_of(k)
        bare.set_original_encoding(True, True)
        del bare.file_meta
        bare.save_as(tmp_path / f"bare/{k}", implicit_vr=True, little_endian=True, enforce_file_format=False)
    for name in ("big", "bare"):
        np.testing.assert_array_equal(load(tmp_path / name)[0].numpy(), VOLUME[..., :3], err_msg=name)


# Pictures


@pytest.mark.parametrize(
    ("storage", "keyword"),
    [
        (uid.ComputedRadiographyImageStorage, "PixelSpacing"),
        (uid.DigitalXRayImageStorageForPresentation, "ImagerPixelSpacing"),
        (uid.DigitalMammographyXRayImageStorageForPresentation, "ImagerPixelSpacing"),
        (uid.UltrasoundImageStorage, ""),
    ],
)
def test_pictures_lie_nowhere_in_space(tmp_path: Path, storage: str, keyword: str) -> None:
    for k in range(2):
        image = slice_of(k, SOPClassUID=storage)
        for element in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(image, element)
        if keyword:
            setattr(image, keyword, [0.2, 0.1])
        write(image, tmp_path / f"study/{k}.dcm")
    items = find_images(tmp_path)
    assert [item["case"] for item in items] == ["0", "1"]
    picture = LOAD(items[1])["image"]
    np.testing.assert_array_equal(picture[0].numpy(), pixels(1).T)
    assert picture.shape == (1, SHAPE[1], SHAPE[0])
    sizes = [0.1, 0.2] if keyword else [1, 1]
    np.testing.assert_allclose(-picture.affine.numpy().diagonal()[:2], sizes)


@pytest.mark.parametrize("interpretation", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_a_picture_in_colour(tmp_path: Path, interpretation: str) -> None:
    image = slice_of(0, SOPClassUID=uid.UltrasoundImageStorage, PhotometricInterpretation=interpretation)
    del image.ImagePositionPatient
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    image.Rows, image.Columns = 2, 2
    image.PixelData = bytes([0, 1, 2, 3])
    if interpretation == "PALETTE COLOR":
        for colour in ("Red", "Green", "Blue"):
            setattr(image, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 16])
            setattr(image, f"{colour}PaletteColorLookupTableData", np.arange(4, dtype="<u2").tobytes())
    else:
        image.SamplesPerPixel, image.PlanarConfiguration = 3, 0
        grey = 128 if interpretation == "YBR_FULL" else None
        image.PixelData = bytes(
            v for k in range(4) for v in (k, k if grey is None else grey, k if grey is None else grey)
        )
    write(image, tmp_path / "a.dcm")
    picture = load(tmp_path / "a.dcm")
    assert picture.shape == (3, 2, 2)
    np.testing.assert_array_equal(picture.numpy(), np.broadcast_to([[0, 2], [1, 3]], (3, 2, 2)))


def test_a_film_is_refused(tmp_path: Path) -> None:
    image = with_pixels(
        slice_of(0, SOPClassUID=uid.UltrasoundMultiFrameImageStorage, NumberOfFrames=3), np.zeros((3, 8, 8), np.uint16)
    )
    del image.ImagePositionPatient
    write(image, tmp_path / "ill/a.dcm")
    assert "a.dcm; got 3 frames that lie nowhere in space, as of a film" in problem_of(tmp_path / "ill")


# Several frames in one file


@pytest.mark.parametrize("frames", [[0, 1, 2, 3, 4, 5], [3, 0, 5, 1, 4, 2]], ids=["sorted", "shuffled"])
def test_frames_go_by_their_positions(tmp_path: Path, frames: list[int]) -> None:
    image = load(write(enhanced(frames), tmp_path / "a.dcm"))
    np.testing.assert_allclose(image[0].numpy(), VOLUME * np.arange(1, 7) - np.arange(6))
    assert image.affine.tolist() == [[-1.5, 0, 0, 10], [0, -2, 0, 12], [0, 0, 3, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("frames", "stacks", "said"),
    [
        ([0, 1, 2, 4, 5], "11111", "uneven distances of its 5 slices: 3 mm mostly, but 6 mm between frame 3 of a.dcm"),
        ([1, 2, 3, 4, 5], "11111", "without number 1. Add what is missing"),
        (
            [0, 1, 2, 3, 4, 5] * 2,
            "1" * 12,
            "12 slices at 6 positions, for example frame 1 of a.dcm and frame 7 of a.dcm",
        ),
        ([0, 1, 2, 3, 4, 5], "111222", "slices of 2 stacks"),
    ],
    ids=["gap", "first", "times", "stacks"],
)
def test_frames_that_are_no_volume(tmp_path: Path, frames: list[int], stacks: str, said: str) -> None:
    write(enhanced(frames, stacks=stacks), tmp_path / "ill/a.dcm")
    assert said in problem_of(tmp_path / "ill")


def test_a_series_of_mosaics_is_refused(tmp_path: Path) -> None:
    for k in range(2):
        write(slice_of(k, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), tmp_path / f"ill/{k}.dcm")
    assert "a series of 2 mosaics, each a volume of one time point, such as 0.dcm" in problem_of(tmp_path / "ill")
    with pytest.raises(ValueError, match=r"0\.dcm; got a mosaic of slices whose private elements"):
        load(tmp_path / "ill/0.dcm")


# Nothing of the patient


@pytest.mark.parametrize("element", ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "TransferSyntaxUID"])
def test_values_that_break_the_standard_are_not_quoted(
    tmp_path: Path, element: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where a damaged length makes one value of all that follow, the patient's name among them."""
    folder = write_series(tmp_path / "a")
    file = folder / "1003.dcm"
    image = slice_of(3)
    value = str(image.file_meta.get(element) or image.get(element)).encode()
    file.write_bytes(file.read_bytes().replace(value, b"Mustermann^Max".ljust(len(value), b"x")[: len(value)]))
    told = []
    with caplog.at_level(logging.DEBUG):
        for read in (lambda: find_images(folder), lambda: load(folder), lambda: load(file)):
            try:
                told.append(str(read()))
            except ValueError as error:
                told.append(str(error))
    printed = capfd.readouterr()
    assert "Muster" not in "".join([caplog.text, *told, printed.out, printed.err])

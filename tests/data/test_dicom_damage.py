"""DICOM files that are no whole image, or claim too much: named, while all others are read."""

import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_writer import enhanced, pixels, slice_of, with_pixels, write, write_series
from pydicom import dcmread, uid

from aeflow_monai.data import LoadCased, find_images

LOAD = LoadCased("image")


def load(path: Path) -> Any:
    return LOAD({"image": str(path)})["image"]


def problems_in(folder: Path) -> dict[str, str]:
    """What is said of each case of a folder when it is listed."""
    return {item["case"]: str(item.get("problem", "")) for item in find_images(folder)}


def test_one_slice_of_many_that_are_declared(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ill", [6], ImagesInAcquisition=30)
    write_series(tmp_path / "well")
    said = problems_in(tmp_path)
    assert said["well"] == ""
    assert "1 slice, where ImagesInAcquisition says that there are 30. Add the missing" in said["ill"]
    with pytest.raises(ValueError, match="ImagesInAcquisition says that there are 30"):
        load(folder)


def test_one_slice_that_is_named_is_one_image(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a", ImagesInAcquisition=6)
    np.testing.assert_array_equal(load(folder / "1001.dcm")[0, ..., 0].numpy(), pixels(5).T)


@pytest.mark.parametrize(("axial", "coronal", "refused"), [(30, 15, True), (11, 10, True), (5, 3, False)])
def test_only_a_few_slices_in_planes_that_cross_are_a_localizer(
    tmp_path: Path, axial: int, coronal: int, refused: bool
) -> None:
    write_series(tmp_path / "scan")
    series = "1.2.3.9"
    write_series(tmp_path / "scan", range(axial), number=2, series=series)
    for k in range(coronal):
        image = slice_of(axial + k, series, 2, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
        write(image, tmp_path / f"scan/coronal{k}.dcm")
    said = problems_in(tmp_path)
    assert list(said) == (["scan_1", "scan_2"] if refused else ["scan"])
    assert ("slices of 2 orientations" in "".join(said.values())) == refused


@pytest.mark.parametrize("count", [-3, 0])
@pytest.mark.parametrize("in_groups", [True, False])
def test_a_count_of_frames_below_one(tmp_path: Path, count: int, in_groups: bool) -> None:
    write_series(tmp_path / "well")
    image = enhanced([0, 1, 2]) if in_groups else slice_of(0)
    image.NumberOfFrames = count
    file = write(image, tmp_path / "ill/a.dcm")
    said = problems_in(tmp_path)
    assert said["well"] == ""
    assert f"1 damaged: a.dcm (its header claims {count} frames)" in said["ill"]
    with pytest.raises(ValueError, match=rf"Expected an image in {file}; got a damaged DICOM file: its header claims"):
        load(file)


def test_a_malformed_number_of_a_frame_leaves_the_others(tmp_path: Path) -> None:
    write_series(tmp_path / "well")
    image = enhanced([0, 1, 2])
    image.PerFrameFunctionalGroupsSequence[1].FrameContentSequence[0].InStackPositionNumber = [1, 2]
    write(image, tmp_path / "odd/a.dcm")
    assert problems_in(tmp_path)["well"] == ""


@pytest.mark.parametrize("extension", [".dcm", ""])
@pytest.mark.parametrize("alone", [True, False])
def test_a_file_that_may_not_be_read(tmp_path: Path, extension: str, alone: bool) -> None:
    write_series(tmp_path / "well")
    folder = write_series(tmp_path / "ill", range(1 if alone else 6), extension=extension)
    file = folder / f"1001{extension}"
    file.unlink()
    if alone:
        write_series(folder, [0], extension, number=2, series="1.2.3.9")
    file.symlink_to("/proc/sys/vm/compact_memory")  # which root may not read either
    if not file.is_file() or not _is_refused(file):
        pytest.skip("this system has no file that cannot be read")
    said = problems_in(tmp_path)
    assert said.pop("well") == ""
    assert f"{file.name} (it cannot be opened: Permission denied)" in "".join(said.values())
    with pytest.raises(ValueError, match=r"1001"):
        load(folder)


def _is_refused(file: Path) -> bool:
    try:
        file.open("rb").close()
    except PermissionError:
        return True
    return False


def test_more_than_memory_should_hold(tmp_path: Path) -> None:
    write_series(tmp_path / "well")
    image = slice_of(0)
    image.compress(uid.RLELossless)
    image.Rows = image.Columns = 60000  # 36 times 10^8 pixels, as a compressed file can claim of few bytes
    file = write(image, tmp_path / "ill/a.dcm")
    said = problems_in(tmp_path)
    assert said["well"] == ""
    assert f"at most 3 GiB in {file}; its header claims (60000, 60000, 1, 1) voxels, 20.1 GiB" in said["ill"]
    with pytest.raises(ValueError, match=r"at most 3 GiB"):
        load(file)


def test_a_deflated_file_is_read(tmp_path: Path) -> None:
    image = slice_of(0)
    image.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(load(write(image, tmp_path / "a.dcm"))[0, ..., 0].numpy(), pixels(0).T)


def test_a_deflated_file_that_fills_the_memory(tmp_path: Path) -> None:
    write_series(tmp_path / "well")
    image = slice_of(0)
    image.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    file = write(image, tmp_path / "ill/a.dcm")
    meta = file.read_bytes()[: 144 + dcmread(file).file_meta.FileMetaInformationGroupLength]
    del image.PixelData
    header = zlib.decompress(write(image, tmp_path / "header").read_bytes()[len(meta) :], -15)
    (tmp_path / "header").unlink()
    content = header + b"\xe0\x7f\x10\x00OW\0\0" + (2**31 + 2**28).to_bytes(4, "little")
    zeros = zlib.compressobj(1, wbits=-15)
    block = zeros.compress(bytes(2**24)) + zeros.flush(zlib.Z_FULL_FLUSH)
    start = zlib.compressobj(1, wbits=-15)
    file.write_bytes(meta + start.compress(content) + start.flush(zlib.Z_FULL_FLUSH) + 144 * block)
    tracemalloc.start()
    said = problems_in(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said["well"] == ""
    assert "a.dcm (its deflated content takes too much memory)" in said["ill"]
    assert peak < 200 * 2**20


@pytest.mark.parametrize("where", [0, 2, 5])
def test_a_slice_that_is_padding_throughout(tmp_path: Path, where: int) -> None:
    for k in range(6):
        values = (pixels(k) % 500).astype(np.int16)
        values[:5] = -2000
        values = np.full_like(values, -2000) if k == where else values
        image = with_pixels(slice_of(k, RescaleSlope=1, RescaleIntercept=-1024), values)
        image.add_new(0x00280120, "SS", -2000)
        write(image, tmp_path / f"a/{k}.dcm")
    volume = load(tmp_path / "a")[0].numpy()
    assert (volume[..., where] == volume.min()).all()
    assert -1024 <= volume.min() < -1000


def test_a_volume_that_is_all_padding_keeps_its_values(tmp_path: Path) -> None:
    for k in range(3):
        image = with_pixels(slice_of(k), np.full((40, 30), 7, np.uint16))
        image.add_new(0x00280120, "US", 7)
        write(image, tmp_path / f"a/{k}.dcm")
    assert (load(tmp_path / "a").numpy() == 7).all()


def test_a_slope_by_which_all_pixels_have_one_value(tmp_path: Path) -> None:
    for k in range(3):
        write(slice_of(k, RescaleSlope=int(k != 1), RescaleIntercept=5), tmp_path / f"a/{k}.dcm")
    with pytest.raises(ValueError, match=r"Expected a rescale slope other than 0 in .*1\.dcm; got 0"):
        load(tmp_path / "a")

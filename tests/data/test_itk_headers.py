import re
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs import VOXELS
from monai.transforms import EnsureChannelFirst, LoadImage

from aeflow_monai.data.checks import CheckImaged
from aeflow_monai.data.itk_headers import check_itk_header
from aeflow_monai.data.readers import LoadCased

# SWIG's types say so once, when the first module of ITK is loaded; as an error it ends the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")


@pytest.fixture
def volume() -> Any:
    import itk  # takes seconds, and warns

    image = itk.image_from_array(VOXELS)
    image.SetSpacing([2.0, 3.0, 4.0])
    return image


def write(image: Any, path: Path, **options: Any) -> Path:
    import itk

    itk.imwrite(image, str(path), **options)
    return path


def load(path: Path) -> Any:
    return CheckImaged()(LoadCased("image")({"image": str(path)}))["image"]


def message(path: Path, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error, match="Expected") as raised:
        load(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("extension", ["mha", "mhd", "nrrd", "nhdr"])
@pytest.mark.parametrize("compression", [False, True])
def test_what_is_whole_is_read_as_itk_reads_it(volume: Any, tmp_path: Path, extension: str, compression: bool) -> None:
    path = write(volume, tmp_path / f"a.{extension}", compression=compression)
    expected = EnsureChannelFirst()(LoadImage(reader="ITKReader", image_only=True)(path))
    found = load(path)
    np.testing.assert_array_equal(found.as_tensor(), expected.as_tensor())
    np.testing.assert_array_equal(found.affine, expected.affine)


@pytest.mark.parametrize("extension", ["mha", "nrrd"])
def test_damaged_and_cut_voxels_are_named(volume: Any, tmp_path: Path, extension: str) -> None:
    path = write(volume, tmp_path / f"a.{extension}", compression=True)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-50])
    assert "got damaged data" in message(path)
    content[-len(content) // 3] ^= 255
    path.write_bytes(content)
    assert "got damaged data" in message(path)
    path.write_bytes(write(volume, tmp_path / f"b.{extension}").read_bytes()[:-50])
    assert "Expected 11520 bytes of voxels" in message(path)
    assert "got 11470" in message(path)


@pytest.fixture
def headers(volume: Any, tmp_path: Path) -> dict[str, str]:
    """Texts of headers; the folder `sub` holds what a.raw and ten slices z00.raw are for them, the folder above too."""
    (tmp_path / "sub").mkdir()
    texts = {}
    for extension in ("mhd", "nhdr"):
        texts[extension] = write(volume, tmp_path / f"a.{extension}").read_text()
    (tmp_path / "sub/a.raw").write_bytes((tmp_path / "a.raw").read_bytes())
    for number, plane in enumerate(VOXELS):
        (tmp_path / f"sub/z{number:02}.raw").write_bytes(plane.tobytes())
    (tmp_path / "sub/link.raw").symlink_to("../a.raw")
    (tmp_path / "sub/folder").symlink_to("..", target_is_directory=True)
    return texts


def names(headers: dict[str, str], extension: str, data: str) -> str:
    """A header that names other data."""
    line = "ElementDataFile = a.raw" if extension == "mhd" else "data file: a.raw"
    assert line in headers[extension]
    return headers[extension].replace(line, line.replace("a.raw", data))


@pytest.mark.parametrize("extension", ["mhd", "nhdr"])
@pytest.mark.parametrize(
    "data",
    [
        "/dev/zero",
        "../a.raw",
        "link.raw",
        "folder/a.raw",
        "..\\a.raw",
        "LIST" + 16 * "\n../a.raw",
        "../z%02d.raw 0 15 1",
    ],
)
def test_no_file_elsewhere_is_read(tmp_path: Path, headers: dict[str, str], extension: str, data: str) -> None:
    path = tmp_path / f"sub/b.{extension}"
    path.write_text(names(headers, extension, data))
    assert "which lies elsewhere. Put the file beside its header" in message(path)


@pytest.mark.parametrize(
    ("extension", "old", "new"),
    [
        ("mhd", "ElementDataFile = a.raw", "ElementDataFile: ../a.raw"),
        ("nhdr", "data file: a.raw", "datafile: ../a.raw"),
        ("nhdr", "data file: a.raw", "Data File: ../a.raw"),
        ("nhdr", "data file: a.raw", "datafile:list:= 1\ndata file: ../a.raw"),
    ],
)
def test_other_spellings(tmp_path: Path, headers: dict[str, str], extension: str, old: str, new: str) -> None:
    path = tmp_path / f"sub/b.{extension}"
    path.write_text(headers[extension].replace(old, new))
    assert "which lies elsewhere" in message(path)


DATA = "ElementDataFile = a.raw"


def test_two_names_of_one_thing_that_agree(tmp_path: Path, headers: dict[str, str]) -> None:
    """As some programs write for others."""
    path = tmp_path / "b.mhd"
    (offset,) = re.findall("^Offset = (.*)$", headers["mhd"], re.MULTILINE)
    path.write_text(headers["mhd"].replace(DATA, f"Position = {offset}\nElementByteOrderMSB = false\n{DATA}"))
    np.testing.assert_array_equal(load(path), load(tmp_path / "a.mhd"))


@pytest.mark.parametrize(
    ("extension", "old", "new", "said"),
    [
        # ITK passes over what is not written as it writes it, and obeys the other line
        ("mhd", "TransformMatrix", "transformMatrix", "'transformMatrix '"),
        ("mhd", "ElementSpacing", "Element Spacing", "'Element Spacing '"),
        ("mhd", "Offset", "offset", "'offset '"),
        ("mhd", DATA, f"Position = 1 0 0\n{DATA}", "one line of 'Offset'"),
        ("mhd", DATA, f"ElementSpacing = 1 1 1\n{DATA}", "one line of 'ElementSpacing'"),
        ("mhd", DATA, f"ElementByteOrderMSB = True\n{DATA}", "one line of 'BinaryDataByteOrderMSB'"),
        ("mhd", DATA, f"BinaryDataByteOrderMSB = False\n{DATA}", "one line of 'BinaryDataByteOrderMSB'"),
        ("mhd", DATA, "elementdatafile = a.raw\nElementDataFile = ../a.raw", "'elementdatafile '"),
        ("mhd", DATA, "ELEMENTDATAFILE = a.raw\nElementDataFile = /dev/zero", "'ELEMENTDATAFILE '"),
        ("mhd", DATA, "ElementDataFile\u00a0= a.raw\nElementDataFile = ../a.raw", "where ITK reads one line of"),
        ("mhd", DATA, "Element DataFile = a.raw\nElementDataFile = ../a.raw", "where ITK reads one line of"),
        ("mhd", DATA, f"ElementDataFile\n= ../a.raw\n{DATA}", "several places with 'ElementDataFile'"),
        ("mhd", DATA, f"{DATA}\nElementDataFile = ../a.raw", "several places with 'ElementDataFile'"),
        ("mhd", DATA, f"Comment = {'x' * 499}ElementDataFile = ../a.raw\n{DATA}", "several places with"),
        ("mhd", DATA, f"Comment = x\rElementDataFile = ../a.raw\n{DATA}", "a carriage return"),
        ("mhd", "DimSize", "dimsize = 10 18 1\nDimSize", "where ITK reads one line of 'DimSize'"),
        ("mhd", "DimSize", "DimSize = 10 18 1\nDimSize", "where ITK reads one line of 'DimSize'"),
        ("nhdr", "data file: a.raw", "data file: a.raw\ndatafile: ../a.raw", "two lines of 'datafile'"),
        ("nhdr", "data file: a.raw", "data file: a.raw\nDATA FILE: ../a.raw", "two lines of 'datafile'"),
        ("nhdr", "data file: a.raw", "# a\rdata file: ../a.raw", "a carriage return"),
        ("nhdr", "sizes:", "sizes: 10 18 1\nsizes:", "two lines of 'sizes'"),
    ],
)
def test_a_header_that_readers_could_take_otherwise(
    tmp_path: Path, headers: dict[str, str], extension: str, old: str, new: str, said: str
) -> None:
    assert old in headers[extension]
    path = tmp_path / f"sub/b.{extension}"
    path.write_bytes(headers[extension].replace(old, new).encode())
    assert said in message(path)
    assert "cannot be understood" in message(path)


@pytest.mark.parametrize("data", ["list\n../a.raw", "LoCaL"])
def test_words_that_itk_takes_for_names(tmp_path: Path, headers: dict[str, str], data: str) -> None:
    path = tmp_path / "sub/b.mhd"
    path.write_text(names(headers, "mhd", data) + "\0" * VOXELS.nbytes)
    assert f"in {tmp_path / 'sub' / data.split()[0]}, which it names" in message(path, FileNotFoundError)


@pytest.mark.parametrize("extension", ["mhd", "nhdr"])
def test_lines_may_be_empty_or_end_as_on_windows(tmp_path: Path, headers: dict[str, str], extension: str) -> None:
    path = tmp_path / f"sub/b.{extension}"
    text = headers[extension].replace("ElementType", "Comment = a\n\n\nComment = b\nElementType")
    path.write_bytes(text.replace("\n", "\r\n").encode())
    np.testing.assert_array_equal(load(path).as_tensor()[0].numpy().T, VOXELS)


@pytest.mark.parametrize("extension", ["mhd", "nhdr"])
@pytest.mark.parametrize(
    "data", ["a.raw", "LIST\n" + "\n".join(f"z{number:02}.raw" for number in range(16)), "z%02d.raw 0 15 1"]
)
def test_files_beside_the_header_are_read(tmp_path: Path, headers: dict[str, str], extension: str, data: str) -> None:
    path = tmp_path / f"sub/b.{extension}"
    path.write_text(names(headers, extension, data))
    np.testing.assert_array_equal(load(path).as_tensor()[0].numpy().T, VOXELS)


@pytest.mark.parametrize(
    "data",
    [
        "LIST 3\na.raw",
        "LIST 3D\na.raw",
        "LIST 1\n" + "\n".join(f"z{number:02}.raw" for number in range(16)),
        "LIST\n" + "\n".join(f"z{number:02}.raw" for number in range(8)),
        "z%02d.raw 15 0 -1",
        "z%02d.raw 0 15",
        "z%02d.raw 0 15 2",
    ],
)
def test_files_of_which_itk_would_read_others(tmp_path: Path, headers: dict[str, str], data: str) -> None:
    """It leaves what memory held in a part of the image, or ends the interpreter."""
    path = tmp_path / "sub/b.mhd"
    path.write_text(names(headers, "mhd", data))
    assert "one file per slice" in message(path)


@pytest.mark.parametrize("extension", ["mhd", "nhdr"])
def test_missing_files_are_named(tmp_path: Path, headers: dict[str, str], extension: str) -> None:
    path = tmp_path / f"sub/b.{extension}"
    path.write_text(names(headers, extension, "z%02d.raw 1 16 1"))
    assert f"in {tmp_path / 'sub/z16.raw'}, which it names" in message(path, FileNotFoundError)


@pytest.mark.parametrize(
    ("extension", "old", "new", "said"),
    [
        ("mhd", "DimSize = 10 18 16", "DimSize = 100000 100000 1000", "Expected an image of at most 3 GiB"),
        ("mhd", "DimSize = 10 18 16", "DimSize = 10 18 17", "Expected 12240 bytes of voxels"),
        ("mhd", "DimSize = 10 18 16", "DimSize = 10 18 8", "Expected 5760 bytes of voxels"),
        ("mhd", "MET_FLOAT", "MET_UCHAR", "got 8640 more"),
        ("mhd", "DimSize = 10 18 16", "DimSize = -10 18 16", "cannot be understood"),
        ("mhd", "MET_FLOAT", "MET_WHAT", "cannot be understood"),
        ("mhd", "MET_FLOAT", "MET_SHORT\nElementNumberOfChannels = 2", "got 2 of type short, as vectors"),
        ("mhd", "ElementType", "ElementNumberOfChannels = 2\nElementType", "Expected 23040 bytes"),
        ("nhdr", "sizes: 10 18 16", "sizes: 100000 100000 1000", "Expected an image of at most 3 GiB"),
        ("nhdr", "type: float", "type: block", "cannot be understood"),
        ("nhdr", "kinds: domain", "kinds: complex", "got 10 of type float, as vectors or colours"),
        ("nhdr", "NRRD0004", "nonsense", "it does not begin with"),
        ("nhdr", "sizes: 10 18 16", "sizes: 10 9 16", "got 5760 more"),
        (
            "nhdr",
            "-superior",
            "-inferior",
            "the space 'left-posterior-inferior', where",
        ),
        ("nhdr", "encoding:", 'space units: "parsec" "parsec" "parsec"\nencoding:', "got the unit 'parsec'"),
    ],
)
def test_claims_that_are_not_true(
    tmp_path: Path, headers: dict[str, str], extension: str, old: str, new: str, said: str
) -> None:
    assert old in headers[extension]
    path = tmp_path / f"sub/b.{extension}"
    path.write_text(headers[extension].replace(old, new))
    assert said in message(path)


@pytest.mark.parametrize(
    ("extension", "old", "new"),
    [
        ("mhd", "ElementType", "DistanceUnits = um\nElementType"),
        ("nhdr", "encoding:", 'space units: "um" "um" "um"\nencoding:'),
    ],
)
def test_distances_are_in_mm(tmp_path: Path, headers: dict[str, str], extension: str, old: str, new: str) -> None:
    path = tmp_path / f"sub/b.{extension}"
    path.write_text(headers[extension].replace(old, new))
    np.testing.assert_allclose(load(path).affine.diagonal().abs(), [0.002, 0.003, 0.004, 1])


def test_big_endian(tmp_path: Path) -> None:
    text = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = True\nElementSpacing = 1 1 1\n"
    text += "DimSize = 10 18 16\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(text.encode() + VOXELS.astype(">f4").tobytes())
    np.testing.assert_array_equal(load(tmp_path / "a.mha").as_tensor()[0].numpy().T, VOXELS)


def test_voxels_behind_a_header_of_a_given_size(tmp_path: Path) -> None:
    text = "ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 1 1 1\nDimSize = 10 18 16\n"
    text += "ElementType = MET_FLOAT\nHeaderSize = {}\nElementDataFile = LOCAL\n"
    path = tmp_path / "a.mha"
    path.write_bytes(text.format(400).encode() + bytes(400) + VOXELS.tobytes())
    with pytest.raises(ValueError, match=r"a\.mha; got one that cannot be understood \(a HeaderSize where the voxels"):
        load(path)
    for size in (0, -1):
        path.write_bytes(text.format(size).encode() + VOXELS.tobytes())
        np.testing.assert_array_equal(load(path).as_tensor()[0].numpy().T, VOXELS)


def test_a_line_that_is_too_long(tmp_path: Path, headers: dict[str, str]) -> None:
    path = tmp_path / "sub/b.nhdr"
    path.write_text(headers["nhdr"].replace("encoding:", f"space: {'a' * 5000}\nencoding:"))
    with pytest.raises(ValueError, match=r"b\.nhdr; got one that cannot be understood \(a line of 5007 characters"):
        load(path)


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
def test_names_that_are_not_utf_8_are_refused_and_values_read(tmp_path: Path, extension: str) -> None:
    # such a name ends the process within ITK on Python 3.13
    latin = "M\u00fcller".encode("latin-1")
    sign, end = (b" = ", b"ElementDataFile = LOCAL\n") if extension == ".mha" else (b":=", b"\n")
    begin = {
        ".mha": b"ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_SHORT\n",
        ".nrrd": b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\n",
    }[extension]
    path, voxels = tmp_path / f"a{extension}", np.arange(120, dtype="<i2").tobytes()
    path.write_bytes(begin + b"Comment" + sign + latin + b"\n" + end + voxels)
    assert load(path).shape == (1, 4, 5, 6)
    path.write_bytes(begin + latin + sign + b"x\n" + end + voxels)
    assert "a field whose name is not UTF-8, 'M\\udcfcller" in message(path)


def test_compressed_voxels_that_go_on(tmp_path: Path) -> None:
    text = "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nElementSpacing = 1 1 1\n"
    text += "DimSize = 10 18 16\nElementType = MET_FLOAT\n"
    path = tmp_path / "a.mha"
    for more in (0, 100):
        packed = zlib.compress(VOXELS.tobytes() + bytes(more))
        end = f"CompressedDataSize = {len(packed)}\nElementDataFile = LOCAL\n"
        path.write_bytes((text + end).encode() + packed)
        if not more:
            np.testing.assert_array_equal(load(path).as_tensor()[0].numpy().T, VOXELS)
    with pytest.raises(ValueError, match=r"a\.mha: they go on behind what the header claims"):
        load(path)


def test_a_further_axis_is_named(tmp_path: Path, headers: dict[str, str]) -> None:
    path = tmp_path / "sub/b.nhdr"
    text = headers["nhdr"].replace("sizes: 10 18 16", "sizes: 10 18 16 1")
    path.write_text(text.replace("kinds: domain domain domain", "kinds: domain domain domain list"))
    assert "got the sizes 10 18 16 1. Save one of its volumes" in message(path)


@pytest.mark.parametrize("extension", ["mha", "mhd"])
@pytest.mark.parametrize("said", ["right", "more than enough", "too little", "nothing"])
def test_the_size_of_compressed_voxels(tmp_path: Path, extension: str, said: str) -> None:
    """ITK reads a part where the header says too little, and leaves in the rest what memory held, without an error."""
    packed = zlib.compress(np.random.default_rng(0).random(VOXELS.shape).astype(np.float32).tobytes())
    size = {"right": len(packed), "more than enough": len(packed) + 4, "too little": len(packed) - 100, "nothing": 0}[
        said
    ]
    text = "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nElementSpacing = 1 1 1\n"
    text += f"CompressedDataSize = {size}\n" if size else ""
    text += "DimSize = 10 18 16\nElementType = MET_FLOAT\n"
    path = tmp_path / f"a.{extension}"
    if extension == "mha":
        path.write_bytes(f"{text}ElementDataFile = LOCAL\n".encode() + packed + bytes(4))
    else:
        path.write_text(f"{text}ElementDataFile = a.zraw\n")
        path.with_suffix(".zraw").write_bytes(packed + bytes(4))
    if said == "too little" or (said == "nothing" and extension == "mha"):
        assert f"Expected CompressedDataSize = {len(packed)} in the header" in message(path)
    else:
        expected = np.random.default_rng(0).random(VOXELS.shape).astype(np.float32)
        np.testing.assert_array_equal(load(path).as_tensor()[0].numpy().T, expected)


def test_nrrd_that_does_not_say_which_side_is_left_is_told_once(
    tmp_path: Path, headers: dict[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aeflow_monai.data.itk_headers._told_of_sides", threading.Event())
    said = "does not say which side is left"
    kinds = ("RAS", "left posterior superior", "left-anterior-superior", "LPST", "right-anterior-superior-time")
    for kind in kinds:
        written = re.sub("(?m)^space: .*$", f"space: {kind}", headers["nhdr"])
        assert kind in written
        (tmp_path / "well.nhdr").write_text(written)
        check_itk_header(tmp_path / "well.nhdr")
    check_itk_header(tmp_path / "a.mhd")
    assert said not in caplog.text
    for name, space in (("b", "space: scanner-xyz"), ("c", "space dimension: 3")):
        (tmp_path / f"{name}.nhdr").write_text(re.sub("(?m)^space: .*$", space, headers["nhdr"]))
        check_itk_header(tmp_path / f"{name}.nhdr")
    assert caplog.text.count(f"b.nhdr {said}: it has no space, as left-posterior-superior. It is taken to run") == 1
    assert "c.nhdr" not in caplog.text

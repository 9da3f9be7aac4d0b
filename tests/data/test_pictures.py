import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from monai.transforms import EnsureChannelFirst, LoadImage
from PIL import Image, ImageOps

from aeflow_monai.data import LoadCased
from aeflow_monai.data.masks import read_mask
from aeflow_monai.data.pictures import MAX_PIXELS, read_picture

Array = npt.NDArray[Any]

ROWS, COLUMNS = np.mgrid[:48, :30]
GREY = ((2 * COLUMNS + ROWS) % 250 + 1).astype(np.uint8)
COLOUR = np.dstack([GREY, GREY // 2, 255 - GREY])


def seen(path: Path) -> Array:
    """Rows and columns of a picture, the colours last, as it was read."""
    values = read_picture(path).as_tensor().numpy()
    return values[0].T if len(values) == 1 else values.transpose(2, 1, 0)


def save(path: Path, pixels: Array, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def message(path: Path) -> str:
    with pytest.raises(ValueError, match="Expected") as raised:
        read_picture(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def write_png(path: Path, size: tuple[int, int], depth: int, colour: int, rows: bytes) -> Path:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")
@pytest.mark.parametrize("pixels", [GREY, np.dstack([GREY] * 3)], ids=["one channel", "three channels"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.jpg", {}), ("a.jpg", {"dpi": (300, 150)}), ("a.tif", {"dpi": (300, 150)}), ("a.tif", {})],
)
def test_ordinary_pictures_are_those_of_itk(tmp_path: Path, pixels: Array, name: str, options: dict[str, Any]) -> None:
    path = save(tmp_path / name, pixels, **options)
    expected = EnsureChannelFirst()(LoadImage(reader="ITKReader", image_only=True)(path))
    found = read_picture(path)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.as_tensor(), expected.as_tensor())
    np.testing.assert_array_equal(found.affine, expected.affine)
    np.testing.assert_array_equal(found.meta["spatial_shape"], expected.meta["spatial_shape"])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_exif_turns_a_picture(tmp_path: Path, orientation: int, extension: str, compression: str | None) -> None:
    turns = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY, -1),
        7: GREY[::-1, ::-1].T,
        8: np.rot90(GREY),
    }
    path = tmp_path / f"a.{extension}"
    if extension == "tif":
        options = {"compression": compression} if compression else {}
        save(path, GREY, tiffinfo={274: orientation}, **options)
    else:
        exif = Image.Exif()
        exif[274] = orientation
        save(path, GREY, exif=exif, **({"quality": 100} if extension == "jpg" else {}))
    expected = turns[orientation]
    assert seen(path).shape == expected.shape
    np.testing.assert_allclose(seen(path), expected, atol=3 if extension == "jpg" else 0)
    assert tuple(read_picture(path).meta["spatial_shape"]) == expected.T.shape


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bits_of_grey_are_kept(tmp_path: Path, extension: str) -> None:
    pixels = GREY.astype(np.uint16) * 257 + 3
    np.testing.assert_array_equal(seen(save(tmp_path / f"a.{extension}", pixels)), pixels)


@pytest.mark.parametrize("pixels", [GREY / np.float32(7), GREY.astype(np.int32) * 1000], ids=["float", "int32"])
def test_32_bits_of_a_tiff_are_kept(tmp_path: Path, pixels: Array) -> None:
    np.testing.assert_array_equal(seen(save(tmp_path / "a.tif", pixels)), pixels)


@pytest.mark.parametrize(("depth", "colour", "samples"), [(16, 2, 3), (16, 6, 4), (16, 4, 2)])
def test_deep_colours_are_refused_as_half_would_be_lost(tmp_path: Path, depth: int, colour: int, samples: int) -> None:
    rows = (b"\0" + bytes(2 * samples * 5)) * 4
    assert "got 16 bits for each of several colours" in message(
        write_png(tmp_path / "a.png", (5, 4), depth, colour, rows)
    )


def test_a_palette_is_seen_through(tmp_path: Path) -> None:
    picture = Image.frombytes("P", (30, 48), (GREY // 64).tobytes())
    colours = np.array([[200, 0, 0], [0, 100, 0], [0, 0, 50], [255, 255, 255]], np.uint8)
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(seen(tmp_path / "a.png"), colours[GREY // 64])


def test_cmyk_becomes_what_is_seen(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "a.tif")
    np.testing.assert_array_equal(seen(tmp_path / "a.tif"), COLOUR)


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    opacity = np.full_like(GREY, 255)
    opacity[:10], opacity[10:20] = 0, 51
    expected = GREY * (opacity / 255)
    np.testing.assert_allclose(seen(save(tmp_path / "la.png", np.dstack([GREY, opacity]))), expected, atol=1)
    rgba = np.dstack([COLOUR, opacity])
    np.testing.assert_allclose(seen(save(tmp_path / "rgba.png", rgba)), COLOUR * (opacity / 255)[..., None], atol=1)
    deep = GREY.astype(np.uint16) * 257
    picture = Image.fromarray(deep)
    picture.save(tmp_path / "deep.png", transparency=int(deep.max()))
    np.testing.assert_array_equal(seen(tmp_path / "deep.png"), np.where(deep == deep.max(), 0, deep))
    whole = np.dstack([COLOUR, np.full_like(GREY, 255)])
    np.testing.assert_array_equal(seen(save(tmp_path / "whole.png", whole)), COLOUR)


@pytest.mark.parametrize("extension", ["png", "tif", "bmp"])
def test_one_bit(tmp_path: Path, extension: str) -> None:
    np.testing.assert_array_equal(seen(save(tmp_path / f"a.{extension}", GREY > 100)), (GREY > 100) * 255)


def test_where_0_is_white(tmp_path: Path) -> None:
    # of 8 bits Pillow turns the values when it writes and when it reads
    np.testing.assert_array_equal(seen(save(tmp_path / "8.tif", GREY, tiffinfo={262: 0})), GREY)
    deep = GREY.astype(np.uint16) * 200
    np.testing.assert_array_equal(seen(save(tmp_path / "16.tif", deep, tiffinfo={262: 0})), 65535.0 - deep)
    real = GREY.astype(np.float32)
    found = seen(save(tmp_path / "f.tif", real, tiffinfo={262: 0}))
    np.testing.assert_array_equal(found, real.max() + real.min() - real)


def test_progressive_jpeg(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", GREY, progressive=True)
    np.testing.assert_array_equal(seen(path), np.asarray(ImageOps.exif_transpose(Image.open(path))))


@pytest.mark.parametrize(("extension", "name"), [("tif", "a.tif"), ("gif", "a.png"), ("png", "a.png")])
def test_several_pages_are_refused(tmp_path: Path, extension: str, name: str) -> None:
    frames = [Image.fromarray(np.roll(GREY, shift)) for shift in range(3)]
    frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:])
    (tmp_path / f"a.{extension}").rename(tmp_path / name)
    assert "got 3 pages or frames. Save each" in message(tmp_path / name)


def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", GREY, quality=90)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.jpg").read_bytes())
    np.testing.assert_array_equal(seen(tmp_path / "a.jpg"), seen(tmp_path / "b.png"))
    (tmp_path / "c.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert "content that no reader knows, beginning with b'%!PS-Adobe-3'" in message(tmp_path / "c.png")


def test_a_tiff_of_another_kind_is_told(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", GREY)
    whole = (tmp_path / "a.tif").read_bytes()
    bits = b"\x02\x01\x03\0\x01\0\0\0"  # BitsPerSample, one short
    assert bits in whole
    (tmp_path / "b.tif").write_bytes(whole.replace(bits + b"\x08", bits + b"\x18"))
    assert "Expected a TIFF of whole numbers of 8 or 16 bits, or of float32, in" in message(tmp_path / "b.tif")


@pytest.mark.parametrize("size", [(30000, 30000), (8193, 8193)])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    said = message(write_png(tmp_path / "a.png", size, 8, 0, bytes(100)))
    assert f"Expected a picture of {MAX_PIXELS} pixels or fewer" in said
    assert f"got {size[0] * size[1]}. Make it smaller" in said


def test_damage_is_named(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.png", COLOUR).read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.png").write_bytes(content)
    assert "got a damaged file: " in message(tmp_path / "a.png")


def test_a_changed_checksum_of_the_pixels_is_damage(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.png", GREY).read_bytes())
    content[content.index(b"IEND") - 8] ^= 1  # of the checksum, which Pillow passes over
    (tmp_path / "a.png").write_bytes(content)
    assert "got a damaged file: the checksum of its pixels is another one" in message(tmp_path / "a.png")


def with_exif(path: Path, *tags: tuple[int, int, int, int]) -> Path:
    """A JPEG with EXIF fields of tag, type, count and value, written byte by byte."""
    fields = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    exif = b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + bytes(4)
    Image.fromarray(GREY).save(path, exif=b"Exif\0\0" + exif)
    return path


TURN = (0x112, 3, 1, 6)


@pytest.mark.parametrize("read", [read_picture, lambda path: read_mask(path, read_picture)])
@pytest.mark.parametrize(
    "tag",
    [(0x100, 1, 1, 0), (0x10E, 5, 1, 0), (0x11A, 1, 1, 0), (0x2BC, 3, 1, 0xFFFFFFFF)],
    ids=["struct.error", "AttributeError", "TypeError", "ValueError"],
)
def test_exif_data_that_cannot_be_understood_are_named(
    tmp_path: Path, tag: tuple[int, int, int, int], read: Callable[[Path], Any]
) -> None:
    path = with_exif(tmp_path / "a.jpg", *sorted([TURN, tag]))
    with pytest.raises(ValueError, match="got a damaged file") as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_an_orientation_that_is_no_number_turns_nothing(tmp_path: Path) -> None:
    path = with_exif(tmp_path / "a.jpg", (0x112, 2, 2, ord("6")))
    assert seen(path).shape == GREY.shape
    assert seen(with_exif(tmp_path / "b.jpg", TURN)).shape == GREY.T.shape


def test_signed_tiff_of_eight_bits(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", GREY, tiffinfo={339: 2})  # SampleFormat
    np.testing.assert_array_equal(seen(path), GREY.astype(np.int8))


@pytest.mark.parametrize("signed", [True, False])
def test_signs_of_tiff_of_32_bits(tmp_path: Path, signed: bool) -> None:
    values = GREY.astype(np.int32) - 100
    path = save(tmp_path / "a.tif", values)
    form = struct.pack("<HHIHH", 339, 3, 1, 2, 0)
    assert path.read_bytes().count(form) == 1
    path.write_bytes(path.read_bytes().replace(form, struct.pack("<HHIHH", 339, 3, 1, 2 if signed else 1, 0)))
    np.testing.assert_array_equal(seen(path), (values if signed else values.view(np.uint32)).astype(np.float32))


def test_palette_of_gif(tmp_path: Path) -> None:
    image = Image.fromarray(GREY % 4).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.gif")
    read = LoadCased("image")({"image": str(tmp_path / "a.gif")})["image"].as_tensor().numpy()
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB"), np.float32).transpose(2, 1, 0))

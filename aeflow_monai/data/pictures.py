"""Read 2D image files (PNG, JPEG, TIFF, BMP) as displayed: EXIF orientation, palette and opacity applied."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from aeflow_monai.printable import first_line

__all__ = ["MAX_PIXELS", "as_channels", "open_picture", "read_picture", "upright"]

Array = npt.NDArray[Any]

# Limit of 8192 x 8192. A picture that declares more is refused before it is decoded.
MAX_PIXELS = 2**26
# Recognised by content, not by name. Pillow's other formats run external programs or are not pictures.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "GIF", "WEBP")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # signatures
_INCH_MM = {1: 25.4, 2: 10.0}  # mm per unit of JFIF's pixel density
_TIFF_UNIT_MM = {2: 25.4, 3: 10.0}
_NEW_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _X_RESOLUTION, _Y_RESOLUTION, _UNIT = 254, 258, 262, 282, 283, 296
_SAMPLE_FORMAT, _SIGNED = 339, 2
_WHITE_IS_ZERO = 0
_ORIENTATION = "orientation"  # EXIF orientation; Pillow drops that of TIFF
_REDUCED_OR_MASK = 0b101  # bits of NewSubfileType of a TIFF page


def read_picture(path: Path) -> MetaTensor:
    """Read a picture.

    Grey values keep their depth (8, 16 or 32 bits); palettes and CMYK become RGB of 8 bits per colour. Transparent
    pixels are blended with black. A picture has no position in the world; its pixel size comes from the header of JPEG
    and TIFF, and is 1 mm in other formats.

    Args:
        path: path of the file.

    Returns:
        (1, W, H) or, in colour, (3, W, H), as float32: columns first, as in ITK.

    Raises:
        ValueError: the file is damaged, exceeds `MAX_PIXELS`, holds several pages or colours of more than 8 bits, or is
            not a picture.
    """
    with open_picture(path) as picture:
        spacing = _spacing(picture)
        turned = picture.info[_ORIENTATION] in (5, 6, 7, 8)
        shown = upright(picture, path)
        values = _of_signs(as_channels(_visible(shown)), picture).astype(np.float32)
        if shown.mode.startswith("I") and isinstance(transparent := picture.info.get("transparency"), int):
            values[values == transparent] = 0  # Pillow applies it to 8 bits alone
        if _is_white_zero(picture) and shown.mode not in ("1", "L"):  # Pillow inverts these modes
            values = _inverted(values, shown.mode)
    return _as_tensor(values, path, spacing[::-1] if turned else spacing)


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open and decode a picture; see `read_picture`.

    Args:
        path: of the file.

    Raises:
        ValueError: as `read_picture`.
    """
    with path.open("rb") as stream:  # given a path, Pillow maps the pixels and rotates those of TIFF wrongly
        picture = _opened(stream, path)
        if (n_pixels := picture.width * picture.height) > MAX_PIXELS:
            raise ValueError(_too_large(path, str(n_pixels)))
        if _is_deep_colour(picture, path):
            raise ValueError(
                f"Expected 8 bits per colour, or grey, in {path}; got 16 bits for each of several colours, of which "
                "half would be lost. Save it in grey, or as 8 bits per colour."
            )
        try:
            pages = _n_pages(picture)
            picture.info[_ORIENTATION] = picture.getexif().get(ExifTags.Base.Orientation, 1)
            picture.load()
            if picture.format == "PNG":
                _check_png(stream)
        except Exception as error:
            raise ValueError(_damaged(path, error)) from error
        if pages > 1:
            raise ValueError(
                f"Expected one picture in {path}; got {pages} pages or frames. Save each as a file of its own, or the "
                "stack as a volume, for example NIfTI."
            )
        yield picture


def _check_png(stream: BinaryIO) -> None:
    """Verify the checksums of the pixels, which Pillow ignores."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        kind, content = head[4:], stream.read(int.from_bytes(head[:4], "big"))
        if kind == b"IDAT" and stream.read(4) != zlib.crc32(kind + content).to_bytes(4, "big"):
            raise ValueError("the checksum of its pixels is another one")
        if kind == b"IEND":
            return
        if kind != b"IDAT":
            stream.read(4)


def _opened(stream: BinaryIO, path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow's header warnings are either followed by an error or harmless; the size is checked below
            warnings.simplefilter("ignore")
            return Image.open(stream, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(path, str(error).split("(")[-1].split(" pixels")[0])) from None
    except UnidentifiedImageError:
        raise ValueError(_unknown(path)) from None
    except Exception as error:
        raise ValueError(_damaged(path, error)) from error


def upright(picture: Image.Image, path: Path) -> Image.Image:
    """Turn a picture upright by its EXIF orientation.

    Args:
        picture: picture as stored.
        path: path of its file, for errors.

    Returns:
        The picture as displayed.

    Raises:
        ValueError: the EXIF data are damaged.

    Example:
        >>> picture = Image.new("L", (2, 3))
        >>> picture.getexif()[ExifTags.Base.Orientation] = 6
        >>> upright(picture, Path("photo.jpg")).size
        (3, 2)
    """
    try:
        return ImageOps.exif_transpose(picture)
    except Exception as error:
        raise ValueError(_damaged(path, error)) from error


def as_channels(picture: Image.Image) -> Array:
    """Return the pixels (C, W, H) of a Pillow image."""
    pixels = np.asarray(picture)
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    # in memory column by column, as in ITK
    return np.moveaxis(np.ascontiguousarray(pixels.swapaxes(0, 1)), 2, 0) if pixels.ndim == 3 else pixels.T.copy()[None]


def _n_pages(picture: Image.Image) -> int:
    """Return the number of pages or frames, without extra views in a JPEG and reduced copies or masks in a TIFF."""
    n_frames = getattr(picture, "n_frames", 1)
    if n_frames == 1 or picture.format == "MPO":
        return 1
    if picture.format != "TIFF":
        return int(n_frames)
    whole = 0
    for frame in range(n_frames):
        picture.seek(frame)
        whole += not int(picture.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & _REDUCED_OR_MASK  # type: ignore[attr-defined]
    picture.seek(0)
    return max(1, whole)


def _visible(picture: Image.Image) -> Image.Image:
    """Return the displayed colours, with opacity applied."""
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.mode == "La":  # opacity is in the grey values, and Pillow converts it only so
        picture = picture.convert("LA")
    if picture.has_transparency_data and not picture.mode.startswith("I"):
        coloured = picture.convert("RGBA")
        black = Image.new("RGBA", coloured.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, coloured).convert("L" if grey else "RGB")
    if grey:
        return picture.convert("L")
    return picture if picture.mode in ("RGB", "F") or picture.mode.startswith("I") else picture.convert("RGB")


def _of_signs(values: Array, picture: Image.Image) -> Array:
    """Return the values of a grey TIFF with the declared signedness, which Pillow may ignore."""
    if picture.format == "TIFF" and len(values) == 1:
        signed = picture.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED  # type: ignore[attr-defined]
        if (values.dtype == np.uint8 and signed) or (values.dtype == np.int32 and not signed and _bits(picture) == 32):
            return values.view(np.int8 if signed else np.uint32)
    return values


def _bits(picture: Image.Image) -> int:
    return int(max(picture.tag_v2.get(_BITS, (1,))))  # type: ignore[attr-defined]


def _is_white_zero(picture: Image.Image) -> bool:
    return bool(picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)  # type: ignore[attr-defined]


def _inverted(values: Array, mode: str) -> Array:
    if mode.startswith("I;16"):
        return np.float32(65535) - values
    inverted: Array = (values.min() + values.max()) - values
    return inverted


def _is_deep_colour(picture: Image.Image, path: Path) -> bool:
    """Whether Pillow and ITK would drop half of the bits of each colour."""
    if picture.format == "PNG":
        with path.open("rb") as stream:
            header = stream.read(26)
        return header[24] == 16 and header[25] != 0  # bit depth and colour type in IHDR, the first chunk
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(_BITS, (1,))  # type: ignore[attr-defined]
        return len(bits) > 1 and max(bits) > 8
    return False


def _spacing(picture: Image.Image) -> tuple[float, float]:
    """Return the stored width and height of a pixel in mm, from the fields that ITK reads."""
    density: Any = (1, 1)
    unit = None
    if picture.format in ("JPEG", "MPO"):
        density, unit = picture.info.get("jfif_density", (1, 1)), _INCH_MM.get(picture.info.get("jfif_unit", 0))
    elif picture.format == "TIFF":
        tags = picture.tag_v2  # type: ignore[attr-defined]
        density, unit = (tags.get(_X_RESOLUTION, 0), tags.get(_Y_RESOLUTION, 0)), _TIFF_UNIT_MM.get(tags.get(_UNIT, 2))
    try:
        across, down = float(density[0]), float(density[1])
    except (TypeError, ValueError, ZeroDivisionError):
        return 1.0, 1.0
    if unit is None or not (0 < across < float("inf") and 0 < down < float("inf")):
        return 1.0, 1.0
    return unit / across, unit / down


def _as_tensor(values: Array, path: Path, spacing: tuple[float, float]) -> MetaTensor:
    affine = np.diag([-spacing[0], -spacing[1], 1.0])  # ITK's axes: x to the left, y to posterior
    meta = {
        "spacing": np.asarray(spacing),
        MetaKeys.ORIGINAL_AFFINE: affine,
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.SPATIAL_SHAPE: np.asarray(values.shape[1:]),
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
        "filename_or_obj": str(path),
    }
    return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine.copy()), meta=meta)


def _too_large(path: Path, n_pixels: str) -> str:
    return (
        f"Expected a picture of {MAX_PIXELS} pixels or fewer, as 8192 x 8192, in {path}; got {n_pixels}. Make it "
        "smaller, or cut it into parts."
    )


def _damaged(path: Path, error: Exception) -> str:
    reason = first_line(error) or type(error).__name__
    kind = "a truncated file" if "truncated" in reason.lower() else "a damaged file"
    return f"Expected an image in {path}; got {kind}: {reason}. Copy or export the file again."


def _unknown(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(12)
    if head[:4] in _TIFF:
        return (
            f"Expected a TIFF of whole numbers of 8 or 16 bits, or of float32, in {path}; got one of another kind, or "
            "a damaged one. Save it so, or as PNG or NIfTI."
        )
    return (
        f"Expected an image in {path}; got content that no reader knows, beginning with {head!r}. Is it an image, and "
        "whole? Correct its extension, or export it again."
    )

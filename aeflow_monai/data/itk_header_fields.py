"""Fields of MetaImage and NRRD headers, as ITK reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["META_IMAGE", "ItkHeader", "read_itk_header"]

META_IMAGE = (".mha", ".mhd")
_HEADER_BYTES = 2**20  # longest header
_LINE_CHARACTERS = 2000  # longest line of a field
_MAX_FILES = 10**5  # most files of a list or a pattern
_META_KEYS = (
    *("NDims", "DimSize", "ElementNumberOfChannels", "ElementType", "ElementSpacing", "ElementSize"),
    *("CompressedData", "CompressedDataSize", "BinaryData", "DistanceUnits", "HeaderSize"),
)
_OTHER_NAMES = {  # synonyms; a header may have both, if their values agree
    **dict.fromkeys(("Offset", "Position", "Origin"), "Offset"),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), "TransformMatrix"),
    **dict.fromkeys(("BinaryDataByteOrderMSB", "ElementByteOrderMSB"), "BinaryDataByteOrderMSB"),
}
_AS_ITK_WRITES = {key.lower(): key for key in (*_META_KEYS, *_OTHER_NAMES, "ElementDataFile")}
_LOCAL = ("LOCAL", "Local", "local")  # the only spellings that ITK accepts
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 8, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
}
_SPACES = re.compile("(ras|las|lps|(left|right)(anterior|posterior)superior)(t(ime)?)?")  # blanks, hyphens removed
_NO_SIDES = re.compile("(scannerxyz|3d(left|right)handed)(t(ime)?)?")
_SPATIAL = ("domain", "space", "time", "none", "???")


class ItkHeader(NamedTuple):
    """The description of the voxels in a header."""

    shape: tuple[int, ...]
    n_bytes: int  # bytes of a number
    files: list[str]  # empty if the voxels follow the header
    offset: int  # where the voxels begin in the header's file
    packed: str  # compression: "", "zlib" or another name
    n_components: int
    kind: str  # type of number
    units: set[str]
    tells_sides: bool = True  # whether the header defines left and right
    skipped: int | None = 0  # bytes in front of the voxels in each of the files; None if ITK counts from their end
    packed_size: int | None = None  # bytes that ITK decompresses; 0 if the header does not say; None for all there are


def read_itk_header(path: Path) -> ItkHeader:
    """Read the header of a MetaImage or NRRD file.

    Raises:
        ValueError: the header cannot be parsed.
    """
    with path.open("rb") as stream:
        content = stream.read(_HEADER_BYTES)
    try:
        return _meta_image(content) if path.suffix.lower() in META_IMAGE else _nrrd(content)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        said = f"its line of {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"Expected a header of MetaImage or NRRD in {path}; got one that cannot be understood ({said}). Is it an "
            "image, and whole? Export it again, or convert it to NIfTI."
        ) from None


def _agree(one: str, other: str) -> bool:
    """Whether two values are the same numbers or the same word."""
    return [word.lower() for word in one.split()] == [word.lower() for word in other.split()]


def _meta_image(content: bytes) -> ItkHeader:
    fields: dict[str, str] = {}
    told: set[str] = set()
    rest = 0
    for line, end in _lines(content):
        written, *values = re.split("[=:]", line, maxsplit=1)  # ITK accepts both separators
        _require_text(written)
        key = _AS_ITK_WRITES.get(re.sub("[^a-z]", "", written.lower()), "")
        thing = _OTHER_NAMES.get(key, key)
        value = "".join(values).strip()
        is_told_again = key in told or (thing in fields and not _agree(value, fields[thing]))
        if key and (is_told_again or key != written.strip(" \t")):
            raise ValueError(f"{written!r}, where ITK reads one line of {thing!r}, written so")
        told.add(key)
        fields[thing] = value
        if key == "ElementDataFile":
            rest = end
            break
    data = fields["ElementDataFile"]
    # parse comments too, since ITK treats the rest of a long comment as a new line
    read = content[:rest] if data in _LOCAL else content
    if len(re.findall(b"elementdatafile", read, re.IGNORECASE)) > 1:
        raise ValueError("several places with 'ElementDataFile'")
    if data in _LOCAL and int(fields.get("HeaderSize", "0")) > 0:
        raise ValueError("a HeaderSize where the voxels are in the same file, whose beginning ITK would take for them")
    shape = [int(size) for size in fields["DimSize"].split()]
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    kind = fields["ElementType"].upper().removeprefix("MET_").removesuffix("_ARRAY")
    n_bytes = _META_BYTES[kind if kind in _META_BYTES else kind.removeprefix("U")]
    files: list[str] = []
    if data.startswith("LIST"):
        files = [line for line, _ in _lines(content[rest:]) if line]
    elif "%" in data:
        files = _of_pattern(data.split())
    elif data not in _LOCAL:
        files = [data]
    if data.startswith("LIST") or "%" in data:
        _require_slices(data, len(files), shape)
    packed = "zlib" if fields.get("CompressedData", "false").lower() in ("true", "1") else ""
    ascii_numbers = fields.get("BinaryData", "true").lower() in ("false", "0")
    units = {fields["DistanceUnits"].lower()} if "DistanceUnits" in fields else set()
    packed = "text" if ascii_numbers else packed
    skipped, packed_size = int(fields.get("HeaderSize", "0")), int(fields.get("CompressedDataSize", "0"))
    header = ItkHeader((*shape, channels), n_bytes, files, rest, packed, channels, kind.lower(), units)
    return _checked(header._replace(skipped=None if skipped < 0 else skipped, packed_size=packed_size))


def _nrrd(content: bytes) -> ItkHeader:
    if not content.startswith(b"NRRD"):
        raise ValueError("it does not begin with NRRD")
    fields: dict[str, str] = {}
    rest = 0
    for line, end in _lines(content):
        rest = end
        if not line:
            break
        if not line.startswith("#"):
            _require_text(line.partition(":")[0])
        if len(line) > _LINE_CHARACTERS and ":=" not in line and not line.startswith("#"):
            raise ValueError(f"a line of {len(line)} characters, {line[:20]!r}...")  # crashes ITK's reader
        key, colon, value = line.partition(": ")
        if not colon or line.startswith("#") or ":=" in key:
            continue  # not a field
        key = key.lower().replace(" ", "")
        if key in fields:
            raise ValueError(f"two lines of {key!r}")
        fields[key] = value.strip()
        if key == "datafile" and value.strip().upper().startswith("LIST"):
            break
    data = fields.get("datafile", "")
    files: list[str] = []
    if data.upper().startswith("LIST"):
        files = [line for line, _ in _lines(content[rest:]) if line]
    elif "%" in data:
        files = _of_pattern(data.split())
    elif data:
        files = [data]
    packed = {"raw": "", "gz": "zlib", "gzip": "zlib"}.get(fields["encoding"].lower(), "other")
    shape = tuple(int(size) for size in fields["sizes"].split())
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(shape)
    channels = math.prod(size for size, kind in zip(shape, kinds, strict=True) if kind not in _SPATIAL)
    number = fields["type"].lower()
    units = {unit.lower() for unit in re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))}
    space = re.sub("[ -]", "", fields.get("space", "").lower())  # as ITK reads it
    tells = _SPACES.fullmatch(space) is not None
    if space and not tells and not _NO_SIDES.fullmatch(space):
        raise ValueError(f"the space {fields['space']!r}, where NRRD has left-posterior-superior and its like")
    header = ItkHeader(shape, _NRRD_BYTES[number], files, rest, packed, channels, number, units, tells)
    skipped = int(fields.get("byteskip", "0"))
    return _checked(header._replace(skipped=None if skipped < 0 or "lineskip" in fields else skipped))


def _require_text(name: str) -> None:
    """Refuse a name of a field that is not UTF-8, which ends the process within ITK on Python 3.13."""
    if any("\udc80" <= sign <= "\udcff" for sign in name):
        raise ValueError(f"a field whose name is not UTF-8, {name[:80]!r}")


def _checked(header: ItkHeader) -> ItkHeader:
    if not header.shape or min(header.shape) < 1:
        raise ValueError(f"a shape of {header.shape}")
    return header


def _lines(content: bytes) -> Iterator[tuple[str, int]]:
    """Yield each line without its line end, and the offset of the next line."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        line = content[start:end].removesuffix(b"\r")
        if b"\r" in line:  # some readers treat it as a line end
            raise ValueError(f"a line with a carriage return, {line[:80]!r}")
        yield line.decode("utf-8", "surrogateescape").strip(), end + 1
        start = end + 1


def _require_slices(data: str, n_files: int, shape: list[int]) -> None:
    """Refuse files of which ITK would read others, or leave a part of the image as memory was."""
    words = data.split()
    is_usual = words[1:] in ([], ["2"], ["2D"]) if words[0] == "LIST" else len(words) == 4 and int(words[3]) > 0
    if len(shape) != 3 or not is_usual or n_files != shape[2]:
        raise ValueError(
            f"{data!r} with {n_files} files for the sizes {' '.join(map(str, shape))}, where ITK reads a volume from "
            "one file per slice: after LIST, or as a pattern with first number, last number and a step of 1 or more"
        )


def _of_pattern(words: list[str]) -> list[str]:
    """Return the names that a pattern such as `slice%03d.raw 1 20 1` expands to."""
    pattern, first, last, step = words[0], int(words[1]), int(words[2]), int(words[3]) if len(words) > 3 else 1
    if not re.fullmatch(r"[^%]*%0?\d{0,2}d[^%]*", pattern) or not step or abs(last - first) / abs(step) > _MAX_FILES:
        raise ValueError(f"the pattern {' '.join(words)!r} of its files")
    return [pattern % number for number in range(first, last + (1 if step > 0 else -1), step)]

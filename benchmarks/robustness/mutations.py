"""Seeded damage to the bytes of a file: each function takes the bytes and a generator, and gives other bytes."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Mapping

import numpy as np

Mutation = Callable[[bytes, np.random.Generator], bytes]

MAGICS = (
    b"\x1f\x8b\x08\x00",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"II*\x00",
    b"NRRD0004\n",
    b"PK\x03\x04",
    b"%PDF",
)
NUMBERS = ("0", "-1", "1", "2147483647", "4294967296", "99999999999999999999", "1e308", "nan", "inf", "-0.5", "", "x")
WORDS = (
    "",
    "null",
    "''",
    "None",
    "true",
    "[]",
    "{}",
    "../../etc/passwd",
    "/dev/zero",
    "\x00",
    "\N{SNOWMAN}",
    "a" * 5000,
)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def place(data: bytes, random: np.random.Generator) -> int:
    """An offset: anywhere, or near the beginning or the end, where headers and tables lie."""
    size = max(1, len(data))
    kind = random.integers(4)
    if kind == 0:
        return int(random.integers(size))
    if kind == 1:
        return max(0, size - 1 - int(random.integers(min(size, 512))))
    return min(size - 1, int(size ** random.random()) - 1)


def flip_bits(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 9))):
        changed[place(data, random)] ^= 1 << int(random.integers(8))
    return bytes(changed)


def set_bytes(data: bytes, random: np.random.Generator) -> bytes:
    start = place(data, random)
    return data[:start] + random.bytes(int(random.integers(1, 17))) + data[start + 16 :]


def cut(data: bytes, random: np.random.Generator) -> bytes:
    return data[: place(data, random)]


def zero_range(data: bytes, random: np.random.Generator) -> bytes:
    start = place(data, random)
    length = min(len(data) - start, int(random.integers(1, 4097)))
    return data[:start] + bytes(length) + data[start + length :]


def insert(data: bytes, random: np.random.Generator) -> bytes:
    start = place(data, random)
    return data[:start] + random.bytes(int(random.integers(1, 65))) + data[start:]


def remove(data: bytes, random: np.random.Generator) -> bytes:
    start = place(data, random)
    return data[:start] + data[start + int(random.integers(1, 257)) :]


def swap_blocks(data: bytes, random: np.random.Generator) -> bytes:
    length = int(random.integers(4, 257))
    first, second = sorted(place(data, random) for _ in range(2))
    if first + length > second:
        return flip_bits(data, random)
    one, other = data[first : first + length], data[second : second + length]
    return data[:first] + other + data[first + length : second] + one + data[second + len(other) :]


def wrong_magic(data: bytes, random: np.random.Generator) -> bytes:
    magic = MAGICS[random.integers(len(MAGICS))]
    return magic + data[len(magic) :]


def extreme_field(data: bytes, random: np.random.Generator) -> bytes:
    """A number of 2, 4 or 8 bytes, as a length or count may be, becomes 0 or as large as it can."""
    start, size = place(data, random), int(random.choice([2, 4, 8]))
    value = [bytes(size), b"\xff" * size, b"\xff" * (size - 1) + b"\x7f", b"\x7f" + b"\xff" * (size - 1)]
    return data[:start] + value[random.integers(4)] + data[start + size :]


def append(data: bytes, random: np.random.Generator) -> bytes:
    return data + random.bytes(int(random.integers(1, 1025)))


def replace_all(data: bytes, random: np.random.Generator) -> bytes:
    return [b"", b"\n", b"not what the name says\n", bytes(len(data)), random.bytes(len(data))][random.integers(5)]


BINARY: tuple[Mutation, ...] = (
    *(flip_bits, set_bytes, cut, zero_range, insert, remove, swap_blocks, wrong_magic, extreme_field, append),
    replace_all,
)


def in_text(data: bytes, pattern: str, random: np.random.Generator, values: tuple[str, ...]) -> bytes:
    text = data.decode("latin-1")
    found = list(re.finditer(pattern, text))
    if not found:
        return flip_bits(data, random)
    chosen = found[random.integers(len(found))]
    value = values[random.integers(len(values))]
    return text[: chosen.start()].encode("latin-1") + value.encode() + text[chosen.end() :].encode("latin-1")


def change_number(data: bytes, random: np.random.Generator) -> bytes:
    return in_text(data, r"-?\d+(\.\d+)?", random, NUMBERS)


def change_word(data: bytes, random: np.random.Generator) -> bytes:
    return in_text(data, r"[A-Za-z_./$@#]{2,}", random, WORDS)


def change_sign(data: bytes, random: np.random.Generator) -> bytes:
    return in_text(data, r"[\[\]{}\",:;'\n]", random, ("", "[", "]", "{", "}", '"', ",", ":", "\n", "\t", "'", "\r"))


def move_line(data: bytes, random: np.random.Generator) -> bytes:
    """A line goes elsewhere, is lost or stands twice."""
    lines = data.splitlines(keepends=True)
    if len(lines) < 2:
        return flip_bits(data, random)
    line, what = int(random.integers(len(lines))), random.integers(3)
    taken = lines.pop(line) if what else lines[line]
    if what < 2:
        lines.insert(int(random.integers(len(lines) + 1)), taken)
    return b"".join(lines)


def nest(data: bytes, random: np.random.Generator) -> bytes:
    """Depth and repetition, which a parser may not survive."""
    many = [b"[" * 20000, b'{"a":' * 20000, BOMB.encode(), b"? " * 5000, b"9" * 200000, b"\n" * 300000]
    start = place(data, random) if random.integers(2) else 0
    return data[:start] + many[random.integers(len(many))] + data[start:]


def foreign_tag(data: bytes, random: np.random.Generator) -> bytes:
    """A YAML tag that asks for an object, an anchor that is not there, another encoding, a merge of nothing."""
    texts = [
        b"!!python/object/apply:os.system [exit]\n",
        b"*nothing\n",
        b"\xff\xfe\x00",
        b"<<: 3\n",
        b"--- {}\n",
        b"%x",
    ]
    start = data.find(b"\n", place(data, random)) + 1
    return data[:start] + texts[random.integers(len(texts))] + data[start:]


TEXT: tuple[Mutation, ...] = (
    *(flip_bits, set_bytes, cut, zero_range, insert, remove, swap_blocks, append, replace_all),
    *(change_number, change_word, change_sign, move_line, nest, foreign_tag),
)


def fields(places: Mapping[str, tuple[int, str]]) -> Mutation:
    """A field of a binary header becomes an extreme of its type, by name: offset and `struct` format."""

    def field(data: bytes, random: np.random.Generator) -> bytes:
        offset, kind = list(places.values())[random.integers(len(places))]
        if kind[-1] in "fd":
            values: list[float] = [0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 3.5]
        else:
            bits = 8 * struct.calcsize(kind)
            values = [0, 1, 2, 7, 255, 2 ** (bits - 1) - 1, *([-1, -(2 ** (bits - 1))] if kind[-1].islower() else [])]
        packed = struct.pack(kind, values[random.integers(len(values))])
        return data[:offset] + packed + data[offset + len(packed) :]

    return field


NIFTI_FIELDS = {
    "sizeof_hdr": (0, "<i"),
    **{f"dim{n}": (40 + 2 * n, "<h") for n in range(8)},
    "datatype": (70, "<h"),
    "bitpix": (72, "<h"),
    **{f"pixdim{n}": (76 + 4 * n, "<f") for n in range(5)},
    "vox_offset": (108, "<f"),
    "scl_slope": (112, "<f"),
    "scl_inter": (116, "<f"),
    "xyzt_units": (123, "<b"),
    "qform_code": (252, "<h"),
    "sform_code": (254, "<h"),
    **{f"quatern{n}": (256 + 4 * n, "<f") for n in range(6)},
    **{f"srow{n}": (280 + 4 * n, "<f") for n in range(12)},
    "extension": (348, "<i"),
    "esize": (352, "<i"),
}
TIFF_FIELDS = {"byte order": (0, "<h"), "version": (2, "<H"), "first IFD": (4, "<I")}


def inside_gzip(mutation: Mutation) -> Mutation:
    """The same damage to what is compressed; the compressed file is whole."""

    def inside(data: bytes, random: np.random.Generator) -> bytes:
        return gzip.compress(mutation(gzip.decompress(data), random), 1, mtime=0)

    inside.__name__ = f"{mutation.__name__} inside"
    return inside


def png_header(data: bytes, random: np.random.Generator) -> bytes:
    """Width, height, depth or colour of a PNG, with a checksum that fits."""
    offset, kind = [(16, ">I"), (20, ">I"), (24, "B"), (25, "B"), (26, "B"), (28, "B")][random.integers(6)]
    values = [0, 1, 3, 16, 2**31 - 1, 70000] if kind == ">I" else [0, 1, 2, 3, 4, 6, 16, 200]
    packed = struct.pack(kind, values[random.integers(len(values))])
    header = data[12:offset] + packed + data[offset + len(packed) : 29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def tiff_entry(data: bytes, random: np.random.Generator) -> bytes:
    """Tag, type, count or value of an entry of the first directory of a little-endian TIFF."""
    (start,) = struct.unpack_from("<I", data, 4)
    (n_entries,) = struct.unpack_from("<H", data, start)
    entry = start + 2 + 12 * int(random.integers(n_entries))
    offset, kind = [(0, "<H"), (2, "<H"), (4, "<I"), (8, "<I")][random.integers(4)]
    values = [0, 1, 3, 255, 65535] if kind == "<H" else [0, 1, 2, 3, 8, 32, 70000, 2**31 - 1, 2**32 - 1]
    packed = struct.pack(kind, values[random.integers(len(values))])
    return data[: entry + offset] + packed + data[entry + offset + len(packed) :]

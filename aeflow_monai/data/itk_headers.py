"""Check MetaImage and NRRD headers: no files outside of their folder, and no more voxels than the files hold."""

from __future__ import annotations

import gzip
import logging
import math
import threading
import zlib
from pathlib import Path

from aeflow_monai.data.itk_header_fields import META_IMAGE, ItkHeader, read_itk_header
from aeflow_monai.data.numbers import require_size

__all__ = ["check_itk_header", "is_itk_volume", "voxel_files"]

_logger = logging.getLogger(__name__)
_told_of_sides = threading.Event()  # warn once per process, not for each file
_NRRD = (".nrrd", ".nhdr")
_MOST_EXTRA = 16  # bytes behind the voxels, such as the end of a line
# Numbers in a voxel, for the types of which ITK reads several.
_COMPONENTS = {
    **dict.fromkeys(("float", "double"), (1, 2, 3, 4)),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), (1, 3, 4)),
}
_UNIT_MM = {"": 1.0, "?": 1.0, "mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "meter": 1000.0, "um": 0.001}
_UNIT_MM |= {"\u00b5m": 0.001, "micron": 0.001, "micrometer": 0.001}


def is_itk_volume(path: Path) -> bool:
    """Whether a path has the name of a MetaImage or NRRD file, which ITK reads."""
    return path.name.lower().endswith((*META_IMAGE, *_NRRD))


def check_itk_header(path: Path) -> float:
    """Refuse a MetaImage or NRRD file that refers outside of its folder or declares absent voxels, before it is read.

    Args:
        path: path of the header.

    Returns:
        Length of its distance unit in mm.

    Raises:
        ValueError: it names a file outside of its folder; the voxels are truncated, damaged or exceed the memory
            limit; the header cannot be parsed; its unit is unknown.
        FileNotFoundError: a file that it names is missing.
    """
    header = read_itk_header(path)
    files = [_beside(path, name) for name in header.files]
    if header.n_components not in _COMPONENTS.get(header.kind, (1,)):
        raise ValueError(
            f"Expected one number in each voxel of {path}; got {header.n_components} of type {header.kind}, as vectors "
            "or colours. Save one of them, or their magnitude, as a volume."
        )
    if path.suffix.lower() in _NRRD and len(header.shape) > 3:
        raise ValueError(
            f"Expected at most three axes in {path}; got the sizes {' '.join(map(str, header.shape))}. Save one of its "
            "volumes without the further axis, or convert it to NIfTI."
        )
    require_size(header.shape, header.n_bytes, str(path))
    _check_voxels(header, files, path)
    is_volume = sum(size > 1 for size in header.shape) > 2
    if is_volume and not header.tells_sides and not _told_of_sides.is_set():
        _told_of_sides.set()
        _logger.warning(
            f"{path} does not say which side is left: it has no space, as left-posterior-superior. It is taken to run "
            "to left, to the back and upwards, as by ITK. Further files are not named."
        )
    if unknown := header.units - _UNIT_MM.keys():
        raise ValueError(
            f"Expected distances in mm, um, cm or m in {path}; got the unit {sorted(unknown)[0]!r}. Correct the header."
        )
    factors = {_UNIT_MM[unit] for unit in header.units} or {1.0}
    if len(factors) > 1:
        raise ValueError(f"Expected one unit for all axes in {path}; got {sorted(header.units)}. Correct the header.")
    return factors.pop()


def voxel_files(path: Path) -> list[Path]:
    r"""Return the voxel files that a MetaImage or NRRD header names; none if the voxels follow the header.

    Args:
        path: path of the header.

    Returns:
        Paths in or below the folder of the header.

    Raises:
        ValueError: the header cannot be parsed, or names a file elsewhere.
        FileNotFoundError: a file that it names is missing.

    Example:
        >>> import tempfile
        >>> header = Path(tempfile.mkdtemp()) / "a.mhd"
        >>> _ = header.with_suffix(".raw").write_bytes(bytes(6))
        >>> _ = header.write_text("DimSize = 1 2 3\nElementType = MET_UCHAR\nElementDataFile = a.raw\n")
        >>> [file.name for file in voxel_files(header)]
        ['a.raw']
    """
    names = read_itk_header(path).files
    for name in names:
        _beside(path, name)
    return [path.parent / name for name in names]


def _beside(header: Path, name: str) -> Path:
    """Return a file that a header names; it has to lie in or below the header's folder, with links resolved."""
    folder = header.parent.resolve()
    try:
        file = (header.parent / name).resolve()
        is_there = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, or a cycle of links
        raise ValueError(
            f"Expected voxels in the folder of the header {header}; it names {name[:80]!r}, which no file can be "
            f"({type(error).__name__}). Correct the header."
        ) from None
    if Path(name).is_absolute() or "\\" in name or ".." in Path(name).parts or not file.is_relative_to(folder):
        raise ValueError(
            f"Expected voxels in the folder of the header {header}; it names {name!r}, which lies elsewhere. Put the "
            "file beside its header, and its bare name into it."
        )
    if not is_there:
        raise FileNotFoundError(
            f"Expected the voxels of {header} in {header.parent / name}, which it names; there is no such file. Put it "
            "there, or correct the header."
        )
    return file


def _check_voxels(header: ItkHeader, files: list[Path], path: Path) -> None:
    """Refuse files that hold less than the header claims, or more, or whose compressed part it gives wrongly."""
    if header.packed not in ("", "zlib"):
        return  # which the reader notices, in memory that is bounded
    parts = files or [path]
    claimed, rest = divmod(math.prod(header.shape) * header.n_bytes, len(parts))  # of each file
    if rest:
        raise ValueError(
            f"Expected the voxels of {path} in files of one size; its header names {len(files)}. Correct the header."
        )
    for file in parts:
        _check_part(header, file, 0 if files else header.offset, claimed, path)


def _check_part(header: ItkHeader, file: Path, offset: int, claimed: int, path: Path) -> None:
    """Refuse a file whose voxels, from an offset on, are not as many bytes as the header at a path claims."""
    is_own = file == path
    found = file.stat().st_size - offset
    if header.packed:
        try:
            found, n_packed = _unpacked(file, offset, claimed)
        except (zlib.error, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(
                f"Expected an image in {path}; got damaged data in {file}: {error}. Copy or export it again."
            ) from None
        # of fewer bytes ITK decompresses a part, and leaves what it finds in memory in the rest of the image
        if header.packed_size is not None and header.packed_size < n_packed and (header.packed_size or is_own):
            said = header.packed_size or "none"
            raise ValueError(
                f"Expected CompressedDataSize = {n_packed} in the header of {path}, the size of its compressed voxels; "
                f"got {said}. ITK reads such a file wrongly. Correct the header, or export the image again."
            )
    if found < claimed:
        raise ValueError(
            f"Expected {claimed} bytes of voxels in {file}, as the header of {path} claims; got {found}. It is "
            "probably truncated: copy or export it again."
        )
    if header.packed or header.skipped is None:  # decompression ends where it should, or ITK counts from the end
        return
    extra = found - claimed - header.skipped
    if extra > _MOST_EXTRA:
        raise ValueError(
            f"Expected {claimed} bytes of voxels in {file}, as the header of {path} claims; got {extra} more. Its size "
            "or type is wrong, or a part in front of the voxels has to be skipped: correct the header, or export it "
            "again."
        )


def _unpacked(file: Path, offset: int, limit: int) -> tuple[int, int]:
    """Count bytes of a part of a file when it is decompressed, at most the limit, and those that this takes."""
    stream = zlib.decompressobj(wbits=47)  # of zlib or gzip
    n_bytes = n_packed = 0
    with file.open("rb") as packed:
        packed.seek(offset)
        block = packed.read(2**16)
        while block and n_bytes <= limit and not stream.eof:
            n_bytes += len(stream.decompress(block, 2**20))
            n_packed += len(block) - len(stream.unconsumed_tail) - len(stream.unused_data)
            block = stream.unconsumed_tail or packed.read(2**16)
    if n_bytes > limit:
        raise EOFError("they go on behind what the header claims")
    if not stream.eof:
        raise EOFError("they end too early")
    return n_bytes, n_packed

"""Recognition of DICOM files in a folder, and names of the series in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["SEPARATOR", "dicom_paths", "is_dicom_file", "split_name"]

# Between a folder and the name of one of the series in it, as in `export#3`.
SEPARATOR = "#"
_EXTENSIONS = (".dcm", ".dicom", ".ima")
# Other formats that often lie beside DICOM files.
_FOREIGN = (
    *(".nii", ".gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw", ".bval", ".bvec"),
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".ico", ".pdf", ".doc", ".docx", ".xls", ".xlsx"),
    *(".txt", ".md", ".log", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".htm", ".css", ".js"),
    *(".zip", ".tar", ".exe", ".dll", ".jar", ".inf", ".ini", ".bat", ".sh", ".py"),
)


def dicom_paths(folder: Path) -> list[Path]:
    """Return the files directly in a folder that are DICOM, or were before they were damaged, sorted."""
    paths = sorted((path for path in folder.iterdir() if _may_be(path)), key=Path.as_posix)
    return [path for path in paths if is_dicom_file(path) or _is_broken(path, paths)]


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM, by its extension or its first bytes."""
    if not _may_be(path):
        return False
    if path.suffix.lower() in _EXTENSIONS:
        return True
    start = _start(path, 132) or b""
    if start[128:] == b"DICM":
        return True
    # old devices write no preamble: the file starts with an element of group 2 or 8 with a short value
    first = start[:2] in (b"\x02\0", b"\x08\0") and start[3:4] == b"\0" and len(start) == 132
    return first and ((start[4:6].isalpha() and start[4:6].isupper()) or int.from_bytes(start[4:8], "little") <= 256)


def split_name(path: Path) -> tuple[Path, str]:
    """Split a path such as `export#3` into folder and series name; without a series, the path and an empty name."""
    if SEPARATOR not in path.name or path.exists():
        return path, ""
    folder, _, name = path.name.rpartition(SEPARATOR)
    inner = path.with_name(folder) if folder else path
    return (inner, name) if inner.is_dir() else (path, "")


def _may_be(path: Path) -> bool:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    return path.suffix.lower() not in _FOREIGN


def _start(path: Path, count: int) -> bytes | None:
    """Return the first bytes of a file; None if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except OSError:
        return None


def _is_broken(path: Path, beside: Sequence[Path]) -> bool:
    """Whether a non-text file without the DICOM signature lies among DICOM files and is named like them."""
    start = _start(path, 1024)  # without read permission only the name counts
    if start and b"\0" not in start:
        return False
    kin = [other for other in beside if other != path and _kind_of_name(other) == _kind_of_name(path)]
    return any(is_dicom_file(other) for other in kin[:3])


def _kind_of_name(path: Path) -> str:
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix

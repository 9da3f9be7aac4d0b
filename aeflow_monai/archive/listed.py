"""Lists of studies, which may have millions of lines and are read line by line."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from aeflow_monai.archive.shard import Shard
from aeflow_monai.archive.study import Study, is_list, study_key
from aeflow_monai.data.channel_order import OneOrder
from aeflow_monai.data.datalist.dicom_series import source_problem
from aeflow_monai.data.datalist.entries import parse_split
from aeflow_monai.data.datalist.image_files import EXTENSIONS
from aeflow_monai.data.datalist.item import first_path, source_exists
from aeflow_monai.data.datalist.listing import find_images
from aeflow_monai.data.datalist.modalities import in_order
from aeflow_monai.data.datalist.naming import fitting_name, path_problem
from aeflow_monai.data.datalist.table_rows import table_columns, table_rows
from aeflow_monai.files import user_path
from aeflow_monai.marks import has_mark
from aeflow_monai.printable import counted, shown
from aeflow_monai.text_encoding import encoding_of

__all__ = ["studies_in", "with_problem"]

_logger = logging.getLogger(__name__)

_PATHS = ("path", "image")  # names of the column or key
_NOTHING: dict[str, str | None] = {}
_Row = tuple[int, Sequence[str], Mapping[str, str | None]]  # line number, paths, and other entries


def studies_in(
    source: str | os.PathLike[str],
    shard: Shard,
    exclude: str | os.PathLike[str] | None = None,
    **listing: Any,
) -> Iterator[Study]:
    r"""Yield the studies of one shard in the order of the list.

    Args:
        source: a list: .txt with one path per line, .csv with a column path or image, or .jsonl with one object per
            line that has one of these keys; "case" and "patient" are read if present. Several paths, which become
            channels, are a list in JSON, and separated by `;` in a table. Paths are relative to the folder of the
            list. In a table or object with "split" only "test" rows are studies. Or any other source of
            `aeflow_monai.data.find_images`, whose items are held in memory.
        shard: the shard.
        exclude: see `find_images`.
        listing: options of `find_images`.

    Yields:
        The studies, before any check that files exist. A path that is listed twice is yielded twice.

    Raises:
        ValueError: a line cannot be parsed, which the message names; or the list names no study.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "list.txt")
        >>> _ = path.write_text("sub-01/t1.nii.gz\nsub-02/t1.nii.gz\n")
        >>> [study.item["case"] for study in studies_in(path, Shard(1, 1))]
        ['sub-01_t1', 'sub-02_t1']
    """
    if not is_list(source):
        yield from _found(source, shard, exclude, listing)
        return
    path = Path(source).absolute()
    modalities = [str(name) for name in ensure_tuple(listing.get("modalities") or ())]
    root = str(path.parent)
    is_empty, n_others, order = True, 0, OneOrder()
    for line, images, row in _rows(path):
        if parse_split((row.get("split") or "").strip() or "test", f"{shown(path)}, line {line}") != "test":
            n_others += 1
            continue
        is_empty = False
        if not images or not all(images):
            raise ValueError(f"{shown(path)}, line {line}: it names no image. Give its path, or take the line away.")
        if len(images) > 1 and not modalities:
            order.require([Path(image) for image in images])
        below = [_below(root, image) for image in images]
        key = study_key(below)
        if shard.holds(key):
            full, problem = [os.path.join(root, image) for image in below], ""  # noqa: PTH118  # faster
            if modalities:
                full, problem = _in_order(full, modalities)
            case = fitting_name((row.get("case") or "").strip() or _name(below[0]))
            item = {
                "image": full[0] if len(full) == 1 else full,
                "case": case,
                "patient": (row.get("patient") or "").strip() or case,
            }
            yield Study(key, {**item, "problem": problem} if problem else item)
    if n_others:
        _logger.warning(f"{counted(n_others, 'row')} of {shown(path)} of other splits than 'test' are not scored.")
    if is_empty:
        raise ValueError(
            f"{shown(path)} names no study: it is empty, or has no row of the split 'test'. Write the path of an image "
            "in each line."
        )


def with_problem(item: Mapping[str, Any]) -> dict[str, Any]:
    """Check that the files of an item exist, and add a "problem" if it cannot be read.

    Args:
        item: item of a datalist.

    Example:
        >>> with_problem({"image": "/absent.png", "case": "absent"})["problem"]
        'There is no file /absent.png. Correct the list, or put the file there.'
    """
    if "problem" in item:
        return dict(item)
    paths = [Path(path) for path in ensure_tuple(item["image"])]
    problem = next(filter(None, map(_problem, paths)), "")
    return {**item, "problem": problem} if problem else dict(item)


def _problem(path: Path) -> str:
    if problem := path_problem(path):
        return problem
    if not source_exists(path):
        return f"There is no file {shown(path)}. Correct the list, or put the file there."
    if has_mark(path):
        return (
            f"{shown(path)} is an output of this package, such as an anomaly map, and no image to be scored. Name the "
            "image that it was made of."
        )
    return source_problem(path)


def _in_order(paths: list[str], modalities: Sequence[str]) -> tuple[list[str], str]:
    """Return the paths in the order of the modalities, or unchanged with the reason why they have none."""
    try:
        return [str(path) for path in in_order([*map(Path, paths)], modalities)], ""
    except ValueError as error:
        return paths, str(error)


def _found(
    source: str | os.PathLike[str], shard: Shard, exclude: str | os.PathLike[str] | None, listing: Mapping[str, Any]
) -> Iterator[Study]:
    root = str(user_path(source).absolute())
    for item in find_images(source, exclude=exclude, **listing):
        key = study_key([_below(root, first_path(item))])
        if shard.holds(key):
            yield Study(key, {name: value for name, value in item.items() if name not in ("label", "lesion")})


def _below(root: str, path: str) -> str:
    """Return a path relative to a folder, or the absolute path if it leads out of it."""
    if path[:1] == os.sep or "./" in path or "//" in path or path[-1:] == "/":  # other paths are relative already
        full = os.path.join(root, path)  # noqa: PTH118
        path = os.path.normpath(full)
        # ".." after a link leads to the parent of the link's target
        if ".." in full and os.path.realpath(full) != os.path.realpath(path):
            path = os.path.realpath(full)
    return path[len(root) + 1 :] if path.startswith(root + os.sep) else path


def _name(path: str) -> str:
    """Return a name that depends on the path alone, whatever else is listed."""
    extension = next((end for end in EXTENSIONS if path.lower().endswith(end)), "")
    parts = path[: len(path) - len(extension)].replace(os.sep, "/").split("/")
    return "_".join(part for part in parts if part not in ("", ".", ".."))


def _rows(path: Path) -> Iterator[_Row]:
    """Yield the lines that are not blank."""
    reader = {".txt": _lines, ".csv": _cells, ".jsonl": _objects}[path.suffix.lower()]
    with path.open("rb") as stream:
        encoding = encoding_of(stream.read(4), shown(path))
    # invalid bytes are escaped, so that the file does not exist, and only this study fails
    with path.open(encoding=encoding, errors="backslashreplace", newline="") as file:
        yield from reader(path, file)


def _lines(path: Path, file: Any) -> Iterator[_Row]:
    for number, line in enumerate(file, 1):
        if text := line.strip():
            yield number, (text,), _NOTHING


def _cells(path: Path, file: Any) -> Iterator[_Row]:
    table = csv.DictReader(file, strict=True)
    table.fieldnames = columns = [name.strip() for name in table_columns(str(shown(path)), table)]
    named = [name for name in columns if name in _PATHS]
    column = named[0] if len(named) == 1 else None
    if column is None:
        raise ValueError(
            f"{shown(path)}: expected one column {' or '.join(_PATHS)} in its first line; got "
            f"{shown(', '.join(columns) or 'none')}."
        )
    for line, row in table_rows(str(shown(path)), table):
        yield line, [part.strip() for part in (row[column] or "").split(";") if part.strip()], row


def _objects(path: Path, file: Any) -> Iterator[_Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            (images,) = (row[name] for name in _PATHS if name in row)
            images = [images] if isinstance(images, str) else images
            if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
                raise TypeError
        except (ValueError, TypeError, StopIteration, RecursionError) as error:
            raise ValueError(
                f"{shown(path)}, line {number}: expected a JSON object with {' or '.join(_PATHS)}, a path or a list of "
                f"paths; got {shown(line.strip()[:80])}."
            ) from error
        named = {
            name: None if row.get(name) is None else _encodable(str(row[name])) for name in ("case", "patient", "split")
        }
        yield number, [*map(_encodable, images)], named


def _encodable(text: str) -> str:
    r"""Escape lone surrogates such as \ud800, which a JSON text may contain."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

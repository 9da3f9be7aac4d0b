"""Lists of images: a CSV table, or the JSON format of MONAI and the Medical Segmentation Decathlon."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aeflow_monai.data.datalist.class_labels import parse_label
from aeflow_monai.data.datalist.entries import JSON_KEYS, UNSPLIT, Entry, parse_split
from aeflow_monai.data.datalist.table_rows import table_columns, table_rows
from aeflow_monai.printable import shown, some
from aeflow_monai.text_encoding import encoding_of

_logger = logging.getLogger(__name__)

_COLUMNS = ("path", "split", "abnormal")
_MORE = "cells without a column"
_FURTHER = ("mask", "case", "patient")
_PASSED_ON = ("sha256", "slices")
_NAME = (str, int, float)
_KEYS = ("image", "label", "abnormal", "mask", "case", "patient", *_PASSED_ON)
_UNUSED_KEYS = ("fold",)  # MONAI's keys of an item that are reported but not used
# Other keys that the Medical Segmentation Decathlon, MONAI, nnU-Net and `run prepare` write beside the lists.
_ABOUT = frozenset(
    (
        *("name", "description", "reference", "licence", "license", "release"),
        *("relase", "modality", "labels", "numTraining", "numTest", "numValidation"),
        *("tensorImageSize", "version", "author", "authors", "citation", "channel_names"),
        *("file_ending", "regions_class_order", "overwrite_image_reader_writer", "dataset_name"),
        *("converted_by", "prepared"),
    )
)


def read_table(file: Path, labels: bool = True) -> list[Entry]:
    """Read a table with the columns path, split, abnormal and, optionally, mask, case and patient."""
    rows = csv.DictReader(io.StringIO(_text(file), newline=""), restkey=_MORE, strict=True)
    rows.fieldnames = found = [name.strip() for name in table_columns(str(file), rows)]
    _check_columns(file, found, _COLUMNS if labels else _COLUMNS[:1])
    return [_row_entry(file, row, f"{file}, row {line}", labels) for line, row in table_rows(str(file), rows)]


def _row_entry(file: Path, row: Mapping[str, Any], where: str, labels: bool) -> Entry:
    if _MORE in row:
        raise ValueError(
            f"{where} has {len(row) - 1 + len(row[_MORE])} cells, but there are {len(row) - 1} columns. Put a cell "
            'that holds a comma in quotes: "a,b.png".'
        )
    cells = {name: (cell or "").strip() for name, cell in row.items()}
    images = tuple(file.parent / path.strip() for path in cells["path"].split(";") if path.strip())
    if not images:
        raise ValueError(f"{where}: path is empty. Name an image, or take the row out.")
    return Entry(
        parse_split(cells.get("split") or ("" if labels else "test"), where),
        images,
        label=parse_label(cells["abnormal"], f"{where}: abnormal") if labels or cells.get("abnormal") else None,
        mask=file.parent / cells["mask"] if cells.get("mask") else None,
        case=cells.get("case", ""),
        patient=cells.get("patient", ""),
    )


def _check_columns(file: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    if lacking := [name for name in wanted if name not in found]:
        raise ValueError(
            f"{file} lacks the column {', '.join(lacking)}; found: {', '.join(found) or 'none'}. "
            f"Expected a first line with {','.join(wanted)} and, if wanted, mask, case and patient, divided by commas."
        )
    if repeated := sorted({name for name in found if found.count(name) > 1 and name}):
        raise ValueError(f"{file} has the column {', '.join(repeated)} more than once. Keep one of each.")
    if unknown := [name for name in found if name not in (*_COLUMNS, *_FURTHER)]:
        _logger.warning(
            f"{shown(file)}: the columns {some(unknown)} are not used; known are {', '.join((*_COLUMNS, *_FURTHER))}."
        )


def read_json(file: Path) -> list[Entry]:
    """Read a MONAI/Decathlon list; MONAI's own loader would take a class label or a case name for a path."""
    try:
        content = json.loads(_text(file), object_pairs_hook=_of_pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}. Correct it there.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}. Correct it there.") from error
    found = list(content) if isinstance(content, dict) else []
    if not any(isinstance(content[key], list) for key in found if key in JSON_KEYS):
        raise ValueError(
            f'{file} has no list "training", and none of "validation" or "test"; its keys are {found}. '
            "Expected the form of the Medical Segmentation Decathlon."
        )
    _check_keys(file, content)
    return [
        _json_entry(item, split, file.parent, f"{file}, {key}[{i}]")
        for key, split in JSON_KEYS.items()
        for i, item in enumerate(content.get(key) or ())
    ]


def _of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, and refuse duplicate keys."""
    if repeated := sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1):
        raise ValueError(f"the key {', '.join(repeated)} stands twice in one object")
    return dict(pairs)


def _check_keys(file: Path, content: Mapping[str, Any]) -> None:
    if unknown := [key for key in content if key not in JSON_KEYS and key not in _ABOUT]:
        raise ValueError(
            f"{file} has unknown keys: {some(unknown)}. Lists of images are {', '.join(JSON_KEYS)}; known beside them "
            f"are {', '.join(sorted(_ABOUT))}. Correct the name, or take it out."
        )
    if wrong := [key for key in JSON_KEYS if not isinstance(content.get(key) or [], list)]:
        raise ValueError(f"{file}: {', '.join(wrong)} has to be a list of images.")
    items = [item for key in JSON_KEYS for item in content.get(key) or () if isinstance(item, dict)]
    if unused := sorted({key for item in items for key in item if key in _UNUSED_KEYS}):
        _logger.warning(f"{shown(file)}: {', '.join(unused)} of its items is not used; the lists tell the split.")


def free_training(entries: list[Entry]) -> list[Entry]:
    """Free the training images of a published Decathlon list, whose test images have no labels, to be divided."""
    if any(entry.split != "train" and (entry.label is not None or entry.mask) for entry in entries):
        return entries
    return [entry._replace(split=UNSPLIT) if entry.split == "train" else entry for entry in entries]


def _as_text(name: str | float | None) -> str:
    whole = isinstance(name, float) and name.is_integer()  # 1.0 is the patient 1
    return "" if name is None else str(int(name) if whole else name)


def _json_entry(item: Any, split: str, folder: Path, where: str) -> Entry:
    fields = {"image": item} if isinstance(item, str) else item
    images = fields.get("image") if isinstance(fields, dict) else None
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(image, str) and image for image in images):
        raise ValueError(
            f'{where} has to be a path, or a dictionary with one path, or a list of paths, as "image"; got {item!r}.'
        )
    if unknown := [key for key in fields if key not in (*_KEYS, *_UNUSED_KEYS)]:
        raise ValueError(
            f"{where} has unknown keys: {some(unknown)}. Known are {', '.join(_KEYS)}. Correct the name, "
            "or take it out."
        )
    label, mask, case, patient = (fields.get(key) for key in ("label", "mask", "case", "patient"))
    if isinstance(label, str) and label not in ("0", "1"):
        label, mask = None, mask or label  # a segmentation
    for key, value, kinds in (("mask", mask, str), ("case", case, _NAME), ("patient", patient, _NAME)):
        if value is not None and not isinstance(value, kinds):
            raise ValueError(f"{where}: {key} has to be text; got {value!r}.")
    if not isinstance(fields.get("sha256", {}), dict):
        raise ValueError(f"{where}: sha256 has to be a dictionary from path to digest; got {fields['sha256']!r}.")
    stated = {
        parse_label(value, f"{where}: {key}")
        for key, value in (("label", label), ("abnormal", fields.get("abnormal")))
        if value is not None
    }
    if len(stated) > 1:
        raise ValueError(f"{where}: label and abnormal contradict each other in {item!r}. Keep the right one.")
    if not stated and not mask and split == "train":
        stated = {0}
    extra: dict[str, Any] = {key: fields[key] for key in _PASSED_ON if key in fields}
    if "sha256" in extra:
        extra["sha256"] = {str(folder / path): digest for path, digest in extra["sha256"].items()}
    return Entry(
        split,
        tuple(folder / image for image in images),
        label=next(iter(stated), None),
        mask=folder / str(mask) if mask else None,
        case=_as_text(case),
        patient=_as_text(patient),
        extra=extra,
    )


def _text(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode(encoding_of(content, shown(file)))  # spreadsheet programs write a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from error

"""Lists of images: a table, and the JSON of MONAI and the Medical Segmentation Decathlon."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from aeflow_monai.data.datalist.class_labels import parse_label
from aeflow_monai.data.datalist.entries import JSON_KEYS, SPLITS, UNSPLIT, Entry

_COLUMNS = ("path", "split", "abnormal")
_PASSED_ON = ("sha256", "slices")


def read_table(file: Path) -> list[Entry]:
    """Rows of a table with the columns path, split, abnormal and, if wanted, mask, case and patient."""
    rows = csv.DictReader(io.StringIO(_text(file), newline=""))
    rows.fieldnames = found = [name.strip() for name in rows.fieldnames or ()]
    if lacking := [name for name in _COLUMNS if name not in found]:
        raise ValueError(
            f"{file} lacks the column {', '.join(lacking)}; found: {', '.join(found) or 'none'}. "
            f"Expected a first line with {','.join(_COLUMNS)} and, if wanted, mask, case and patient, divided by "
            "commas."
        )
    entries = []
    for row in rows:
        cells = {name: (cell or "").strip() for name, cell in row.items() if name}
        where = f"{file}, row {rows.line_num}"
        images = tuple(file.parent / path.strip() for path in cells["path"].split(";") if path.strip())
        if not images:
            raise ValueError(f"{where}: path is empty. Name an image, or take the row out.")
        if cells["split"].lower() not in SPLITS:
            raise ValueError(f"{where}: split has to be one of {', '.join(SPLITS)}; got {cells['split']!r}.")
        entries.append(
            Entry(
                SPLITS[cells["split"].lower()],
                images,
                label=parse_label(cells["abnormal"], f"{where}: abnormal"),
                mask=file.parent / cells["mask"] if cells.get("mask") else None,
                case=cells.get("case", ""),
                patient=cells.get("patient", ""),
            )
        )
    return entries


def read_json(file: Path) -> list[Entry]:
    """Items of a MONAI/Decathlon list; MONAI's own loader would take a class label or a case name for a path."""
    try:
        content = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}. Correct it there.") from error
    found = list(content) if isinstance(content, dict) else []
    if not any(isinstance(content[key], list) for key in found if key in JSON_KEYS):
        raise ValueError(
            f'{file} has no list "training", and none of "validation" or "test"; its keys are {found}. '
            "Expected the form of the Medical Segmentation Decathlon."
        )
    return [
        _json_entry(item, split, file.parent, f"{file}, {key}[{i}]")
        for key, split in JSON_KEYS.items()
        for i, item in enumerate(content.get(key) or ())
    ]


def free_training(entries: list[Entry]) -> list[Entry]:
    """A Decathlon list whose test images are without labels, as published, with its training images to be divided."""
    if any(entry.split != "train" and (entry.label is not None or entry.mask) for entry in entries):
        return entries
    return [entry._replace(split=UNSPLIT) if entry.split == "train" else entry for entry in entries]


def _json_entry(item: Any, split: str, folder: Path, where: str) -> Entry:
    fields = {"image": item} if isinstance(item, str) else item
    images = fields.get("image") if isinstance(fields, dict) else None
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise ValueError(
            f'{where} has to be a path, or a dictionary with one path, or a list of paths, as "image"; got {item!r}.'
        )
    label, mask, case, patient = (fields.get(key) for key in ("label", "mask", "case", "patient"))
    if isinstance(label, str) and label not in ("0", "1"):
        label, mask = None, mask or label  # a segmentation
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
        case="" if case is None else str(case),
        patient="" if patient is None else str(patient),
        extra=extra,
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # spreadsheets begin with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from error

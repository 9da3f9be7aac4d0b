"""Turn the entries of a layout into datalist items: named, of one section, with existing files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aeflow_monai.data.datalist import dicom_series as dicom
from aeflow_monai.data.datalist.class_labels import label_of_mask
from aeflow_monai.data.datalist.dicom_patients import patient_in_header, with_one_name_each
from aeflow_monai.data.datalist.entries import UNSPLIT, Entry
from aeflow_monai.data.datalist.entry_checks import checked, refuse_trained_and_tested_on, warn_of_patients_in_both
from aeflow_monai.data.datalist.image_files import stem
from aeflow_monai.data.datalist.item import first_path
from aeflow_monai.data.datalist.layouts import LAYOUTS
from aeflow_monai.data.datalist.naming import fitting_name, key_of, name_cases, unique_names
from aeflow_monai.data.datalist.splits import draw_patients
from aeflow_monai.printable import counted, shown

_logger = logging.getLogger(__name__)

SECTIONS = {
    "train": {"train", UNSPLIT},
    "validation": {"validation"},
    "test": {"test"},
    "unsplit": {UNSPLIT},
    "all": {"train", "validation", "test", UNSPLIT},
}


class EmptySectionError(ValueError):
    """A data set holds no image of a section."""


class DividedError(ValueError):
    """`test_fraction` was given for a data set that has its own splits."""


def to_items(
    layout: str,
    source: Path,
    entries: Sequence[Entry],
    section: str,
    test_fraction: float = 0.0,
    seed: int = 0,
    scored_only: bool = False,
) -> list[dict[str, Any]]:
    """Name the cases, select the section, check its files and take missing labels from masks.

    With `scored_only`, patients are not compared, since no model is trained or tested on the images.
    """
    remedy = LAYOUTS[layout].remedy
    # over all sections, so that a case has the same name in each of them
    root = source if source.is_dir() else source.parent
    if source.is_file() and not scored_only:
        refuse_trained_and_tested_on(source, entries)
        # only for a list without patients: the reader of a folder has done this already
        entries = [e if e.patient else e._replace(patient_id=patient_in_header(e.images[0])) for e in entries]
    entries = _name(entries, root)
    if test_fraction:
        entries = _divide(source, entries, test_fraction, seed)
    if section in ("train", "test") and not scored_only:
        warn_of_patients_in_both(source, entries)

    chosen = sorted((entry for entry in entries if entry.split in SECTIONS[section]), key=_sort_key)
    if not chosen:
        plural = f"{LAYOUTS[layout].plural} without a split"
        held = [f"{count} in {split or plural}" for split, count in Counter(entry.split for entry in entries).items()]
        raise EmptySectionError(
            f"{source} holds no image for the section {section!r}; found {', '.join(held) or 'none at all'}. {remedy}"
            f"{_about_dividing(entries)}"
        )
    n_left = sum(entry.split == "validation" for entry in entries)
    if section in ("train", "test") and n_left:
        images = f"{counted(n_left, 'image')} of {shown(source)} in the split 'validation'"
        _logger.warning(f"Not used: {images}. A training holds out a part of its own normals.")
    chosen = checked(source, root, chosen, stop=section == "train")

    items = [_to_item(entry) for entry in chosen]
    problems = [item["problem"] for item in items if "problem" in item]
    if len(problems) == len(items):
        raise ValueError(f"None of the {len(items)} cases in {source} can be used. The first: {problems[0]}")
    if section == "train" and not any(item.get("label") == 0 or "lesion" in item for item in items):
        raise ValueError(
            f"The section 'train' of {source} holds no normal image among {len(items)}, but the model is trained on "
            f"normal images only. {remedy}"
        )
    return items


def one_case_per_image(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items with unique cases: a case that several share gets the file name appended."""
    counts = Counter(key_of(item["case"]) for item in items)
    shared = [Path(first_path(item)) for item in items if counts[key_of(item["case"])] > 1]
    root = Path(os.path.commonpath([path.parent for path in shared])) if shared else Path()
    tails = name_cases({path: stem(path) for path in shared}, root, set())
    names = {}
    for item in items:
        case, path = item["case"], first_path(item)
        names[path] = fitting_name(f"{case}_{tails[Path(path)]}") if counts[key_of(case)] > 1 else case
    names = unique_names(names, set())
    return [{**item, "case": names[first_path(item)]} for item in items]


def _to_item(entry: Entry) -> dict[str, Any]:
    paths = [str(path) for path in entry.images]
    item: dict[str, Any] = {"image": paths[0] if len(paths) == 1 else paths, "case": entry.case}
    item["patient"] = entry.patient
    problem = entry.problem
    if not problem and not entry.examined:
        problem = next(filter(None, map(dicom.source_problem, entry.images)), "")
    label = entry.label
    if label is None and entry.mask and not problem:
        try:
            label = label_of_mask(entry.mask)
        except ValueError as error:
            problem = str(error)
    if label is not None:
        item["label"] = label
    if entry.mask:
        item["lesion"] = str(entry.mask)
    if problem:
        item["problem"] = problem
    return {**item, **entry.extra}


def _name(entries: Sequence[Entry], root: Path) -> list[Entry]:
    """Fill in missing cases and patients."""
    named = {entry.named or entry.images[0]: entry for entry in entries if not entry.case}
    short = {path: path.name if entry.named else stem(path) for path, entry in named.items()}
    cases = name_cases(short, root, {entry.case for entry in entries if entry.case})
    full = [entry._replace(case=entry.case or cases[entry.named or entry.images[0]]) for entry in entries]
    return with_one_name_each([entry._replace(patient=entry.patient or entry.case) for entry in full])


def _divide(source: Path, entries: Sequence[Entry], test_fraction: float, seed: int) -> list[Entry]:
    """Divide the entries without a split into train and test, by patient."""
    patients = sorted({entry.patient for entry in entries if entry.split == UNSPLIT})
    if len(patients) < 2:
        raise ValueError(
            f"Expected at least 2 patients in {source} to divide with test_fraction {test_fraction}; got {patients}. "
            "Leave test_fraction at 0, or name the patients in a manifest.csv."
        )
    test = draw_patients(patients, test_fraction, seed)
    return [
        entry._replace(split="test" if entry.patient in test else "train") if entry.split == UNSPLIT else entry
        for entry in entries
        if entry.split != "test"  # test images of a JSON list without labels
    ]


def _about_dividing(entries: Sequence[Entry]) -> str:
    """Return the advice on `test_fraction` for a data set without splits."""
    unsplit = [entry for entry in entries if entry.split == UNSPLIT]
    if not unsplit:
        return ""
    if all(entry.label == 0 and not entry.mask for entry in unsplit):
        return f" All {len(unsplit)} are normal; an evaluation needs abnormal images too."
    return (
        " Or divide the patients, with --test_fraction 0.2, for the training too: images that were trained on are no "
        "test."
    )


def _sort_key(entry: Entry) -> str:
    return entry.images[0].as_posix()

"""Checks on entries: each file exists, is listed once, and has a name that can be written and printed."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.data.datalist.entries import Entry
from aeflow_monai.data.datalist.item import source_exists
from aeflow_monai.data.datalist.naming import case_problem, fitting_name, key_of, path_problem
from aeflow_monai.data.datalist.walking import identity
from aeflow_monai.marks import has_mark
from aeflow_monai.printable import counted, shown, some

__all__ = ["checked", "of_each_file_once", "refuse_trained_and_tested_on", "warn_of_patients_in_both"]

_logger = logging.getLogger(__name__)


def of_each_file_once(source: Path, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries; where paths in a folder lead to the same file, only the first is kept.

    Raises:
        ValueError: a list names a file twice, also by another path, link or spelling in upper and lower case; a file
                has two splits or labels; or an image is its own mask.
    """
    first: dict[object, tuple[Entry, Path]] = {}
    masks = {identity(entry.mask): entry for entry in entries if entry.mask and not entry.problem}
    kept, repeated = [], []
    for entry in entries:
        if entry.problem:
            kept.append(entry)
            continue
        own = [identity(path) for path in entry.images]
        if masked := next((masks[key] for key in own if key in masks), None):
            which = "the image itself" if masked is entry else f"the image of another case, {shown(entry.images[0])}"
            raise ValueError(
                f"{shown(source)}: the mask of {shown(masked.images[0])}, {shown(masked.mask)}, is {which}. Name the "
                "file of the mask, or leave it out."
            )
        known = next((first[key] for key in own if key in first), None)
        if known is None and len(set(own)) == len(own):
            kept.append(entry)
            first |= {key: (entry, path) for key, path in zip(own, entry.images, strict=True)}
        elif known is None or source.is_file() or (known[0].split, known[0].label) != (entry.split, entry.label):
            path = entry.images[0]
            repeated.append(f"{path}, which is {known[1]}" if known and known[1] != path else str(path))
    if repeated:
        raise ValueError(
            f"{shown(source)} lists {len(repeated)} images more than once: {some(repeated)}. Keep each in one place, "
            "so that no image is both trained and tested on."
        )
    return kept


def refuse_trained_and_tested_on(source: Path, entries: Sequence[Entry]) -> None:
    """Refuse a list that trains and tests on the same case or the same named patient.

    Raises:
        ValueError: names the cases or patients.
    """
    for kind in ("case", "patient"):
        splits: dict[str, set[str]] = defaultdict(set)
        names: dict[str, str] = {}
        for entry in entries:
            name = getattr(entry, kind)
            key = key_of(name)  # upper and lower case are one
            splits[key].add(entry.split)
            names.setdefault(key, name)
        both = sorted(names[key] for key, held in splits.items() if key and {"train", "test"} <= held)
        if both:
            raise ValueError(
                f"{shown(source)} has {counted(len(both), kind)} both in train and in test: {some(both)}. Keep all "
                f"images of a {kind} in one of them, or correct the names."
            )


def warn_of_patients_in_both(source: Path, entries: Sequence[Entry]) -> None:
    """Warn if DICOM images with one PatientID are in both the training and the test split.

    This is not an error, since de-identification may give several patients the same PatientID.

    Args:
        source: folder or list.
        entries: all its entries, named; those with a patient in a list have no PatientID here.
    """
    of_patients: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in entries:
        if entry.patient_id:
            of_patients[entry.patient_id].setdefault(entry.split, entry.case)
    pairs = [(cases["train"], cases["test"]) for cases in of_patients.values() if {"train", "test"} <= cases.keys()]
    if pairs and len(of_patients) > 1:
        told = some([f"{trained} and {tested}" for trained, tested in pairs])
        _logger.warning(
            f"Both in train and in test, by PatientID: {counted(len(pairs), 'patient')} of {shown(source)}, as cases "
            f"{told}. Of these the result is no test. If that is wrong, name patients in the column patient of a "
            "manifest.csv."
        )


def checked(source: Path, root: Path, entries: Sequence[Entry], *, stop: bool) -> list[Entry]:
    """Return the entries, with a problem in each that cannot be used.

    Args:
        source: folder or list.
        root: folder that paths are relative to.
        entries: entries of one section.
        stop: raise an error instead if a file is missing.

    Raises:
        FileNotFoundError: all files are missing, or with `stop` any file.
    """
    named = [_with_safe_names(entry) for entry in entries]
    files = {path for entry in named if not entry.problem for path in (*entry.images, entry.mask) if path}
    missing = sorted(path for path in files if not source_exists(path))
    if missing and (stop or len(missing) == len(files)):
        raise FileNotFoundError(
            f"{len(missing)} of the {len(files)} files listed in {shown(source)} are missing: {some(missing)}. Its "
            f"paths are relative to {shown(root)}. Correct them, or put the files there."
        )
    absent = set(missing)
    return [_with_files(entry, absent, root) for entry in named]


def _with_safe_names(entry: Entry) -> Entry:
    paths = [*entry.images, *([entry.mask] if entry.mask else [])]
    problem = entry.problem or next(filter(None, (*map(path_problem, paths), case_problem(entry.case))), "")
    return entry._replace(
        images=tuple(Path(shown(path)) for path in entry.images),
        mask=entry.mask and Path(shown(entry.mask)),
        case=fitting_name(entry.case),
        patient=shown(entry.patient),
        problem=shown(problem),
    )


def _with_files(entry: Entry, absent: set[Path], root: Path) -> Entry:
    if entry.problem:
        return entry
    lost = [path for path in (*entry.images, entry.mask) if path in absent]
    marked = [path for path in entry.images if has_mark(path)]
    if lost:
        relative = f" Paths are relative to {root}." if any(path.is_relative_to(root) for path in lost if path) else ""
        problem = f"There is no file {some(lost)}.{relative} Correct them, or put the files there."
    elif marked:
        problem = (
            f"{some(marked)} is an output of this package, such as an anomaly map, and no image to be scored or "
            "trained on. Name the image that it was made of."
        )
    else:
        return entry
    return entry._replace(problem=problem)

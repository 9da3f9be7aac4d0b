"""Patients of DICOM images: the headers tell which images are of one, and folders give the name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.data.datalist.entries import Entry
from aeflow_monai.data.datalist.image_files import is_dicom
from aeflow_monai.data.datalist.naming import key_of
from aeflow_monai.data.dicom.headers import read_header
from aeflow_monai.data.dicom.paths import dicom_paths, split_name

__all__ = ["patient_in_header", "with_one_name_each"]

_logger = logging.getLogger(__name__)


def patient_in_header(path: Path) -> str:
    """PatientID of a file, or of the first one in a folder of series, which is never written anywhere.

    Returns:
        Nothing if it is no DICOM, or has none.
    """
    try:
        folder, _ = split_name(path)
        if folder.is_dir():
            path = next(iter(dicom_paths(folder)), path)
        return read_header(path).text("PatientID") if is_dicom(path) else ""
    except (ImportError, OSError, ValueError):  # the case fails for it
        return ""


def with_one_name_each(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, those of one patient under one name; else a split could put a patient on both of its sides.

    One are those of one PatientID, and those whose names differ by upper and lower case alone.

    Args:
        entries: all of a folder or list, each with a name of its patient.
    """
    spelt: dict[str, str] = {}
    entries = [entry._replace(patient=spelt.setdefault(key_of(entry.patient), entry.patient)) for entry in entries]
    first: dict[str, str] = {}  # name by PatientID
    same: dict[str, str] = {}  # the name that stands for another one

    def name_of(name: str) -> str:
        while same.get(name, name) != name:
            name = same[name]
        return name

    for entry in entries:
        if entry.patient_id:
            one, other = name_of(first.setdefault(entry.patient_id, entry.patient)), name_of(entry.patient)
            same[max(one, other)] = min(one, other)
    if len(first) == 1 and any(name != name_of(name) for name in same):
        _logger.info("All DICOM images have one PatientID, as after de-identification: patients go by folders.")
        return entries
    return [entry._replace(patient=name_of(entry.patient)) for entry in entries]

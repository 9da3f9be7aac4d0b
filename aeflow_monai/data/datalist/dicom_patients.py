"""Patients of DICOM images, grouped by their headers and named after their folders."""

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
    """Return the PatientID of a DICOM file, or of the first file in a folder; it is never written anywhere.

    Returns:
        The PatientID; empty if the path is not DICOM or has none.
    """
    try:
        folder, _ = split_name(path)
        if folder.is_dir():
            path = next(iter(dicom_paths(folder)), path)
        return read_header(path).text("PatientID") if is_dicom(path) else ""
    except (ImportError, OSError, ValueError):  # reading the case later fails for the same reason
        return ""


def with_one_name_each(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with one name per patient, so that a split cannot put a patient on both sides.

    Entries are of one patient if they share a PatientID, or if their names differ only in upper and lower case.

    Args:
        entries: all entries of a folder or list, each with the name of its patient.
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

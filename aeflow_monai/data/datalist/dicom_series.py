"""One DICOM series a folder."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np

from aeflow_monai.data.datalist.entries import UNSPLIT, Entry
from aeflow_monai.data.datalist.image_files import is_series, series_below, some, subfolders

REMEDY = "Expected one folder of DICOM files for each series in it or below."
_SAME_PLACE = 1e-3  # mm
_TOLERANCE = 0.1  # of the median distance of slices: rounded positions pass, a missing slice does not


def has_dicom(root: Path) -> bool:
    """Whether the folder, or one in it, holds DICOM files."""
    return is_series(root) or any(is_series(folder) for folder in subfolders(root))


def read_dicom(root: Path) -> list[Entry]:
    """All series, taken as normal; the first folder below the root tells the patient."""
    return [
        Entry(UNSPLIT, (folder,), 0, patient=next(iter(folder.relative_to(root).parts), ""))
        for folder in series_below(root)
    ]


def series_problem(folder: Path) -> str:
    """What would be read wrongly from a folder of DICOM files; nothing if all is well.

    MONAI's ITKReader takes the first of several series, and ITK spreads the slices evenly, whatever their positions.
    """
    names = itk.GDCMSeriesFileNames.New()  # as ITKReader does it
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(str(folder))
    series = [names.GetFileNames(uid) for uid in names.GetSeriesUIDs()]
    if not series:
        return f"{folder} holds no DICOM slices. Put the files of one series there, or name an image file."
    if len(series) > 1:
        found = [f"{_description(files[0])} with {len(files)} files" for files in series]
        return (
            f"{folder} holds {len(series)} DICOM series, where only the first would be read: {some(found)}. Move each "
            "into a folder of its own (slices of one series that differ in size, orientation or date count as several)."
        )
    try:
        return _position_problem(folder, series[0])
    except RuntimeError as error:  # ITK's own
        return f"{folder} holds DICOM files that cannot be read: {error}. Get them again, or take the broken ones out."


def _position_problem(folder: Path, files: tuple[str, ...]) -> str:
    origins = []
    for file in files:
        header = _header(file)
        origins.append([header.GetOrigin(axis) for axis in range(3)])
    positions = np.sort(np.array(origins) @ np.array(header.GetDirection(2)))
    gaps = np.diff(positions)
    if (repeated := gaps < _SAME_PLACE).any():
        return (
            f"{folder} holds several slices at one position, as of several times or echoes: {len(files)} files at "
            f"{len(files) - repeated.sum()} positions. Move each time or echo into a folder of its own, or name the "
            "files one by one in a manifest.csv."
        )
    median = float(np.median(gaps)) if len(gaps) else 0.0
    if (uneven := np.abs(gaps - median) > _TOLERANCE * median).any():
        found = [f"{gaps[i]:g} mm after position {positions[i]:g} mm" for i in np.flatnonzero(uneven)]
        return (
            f"{folder} has uneven distances of slices: {median:g} mm mostly, but {some(found)}. Add the missing slices "
            f"to the {len(files)} files, or resample the series to even distances and save it as NIfTI."
        )
    return ""


def _header(file: str) -> itk.GDCMImageIO:
    header = itk.GDCMImageIO.New()
    header.SetFileName(file)
    header.ReadImageInformation()
    return header


def _description(file: str) -> str:
    header = _header(file)  # its tags do not outlive it
    tags = header.GetMetaDataDictionary()
    return repr(str(tags["0008|103e"]).strip()) if tags.HasKey("0008|103e") else "one without description"

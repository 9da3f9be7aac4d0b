"""Exclude localizers and screenshots, which only serve to plan or view other images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aeflow_monai.data.dicom.frames import frames_of, has_place
from aeflow_monai.data.dicom.headers import DicomFile
from aeflow_monai.data.dicom.image import Image, helper_kind

__all__ = ["without_helpers", "without_scouts"]


_SCOUT_SLICES = 10  # most slices of a localizer in one plane


def without_helpers(files: Sequence[DicomFile], unused: dict[Path, str]) -> list[DicomFile]:
    """Return the files without localizers and screenshots, unless their study has nothing else in the folder."""
    helpers = {file.path: kind for file in files if (kind := helper_kind(file))}
    placed = {file.text("StudyInstanceUID") for file in files if file.path not in helpers and has_place(file)}
    left_out = {file.path for file in files if file.path in helpers and file.text("StudyInstanceUID") in placed}
    unused.update({path: f"{helpers[path]} beside images in space" for path in left_out})
    return [file for file in files if file.path not in left_out]


def without_scouts(images: Sequence[Image], unused: dict[Path, str]) -> list[Image]:
    """Return the images without localizers that are not marked as such: a few slices in each of several planes."""
    scouts = [image for image in images if image.is_stack and image.problem and _is_scout(image)]
    if len(scouts) == len(images):
        return list(images)
    for image in scouts:
        unused.update({file.path: "a localizer: slices in planes that cross" for file in image.files})
    return [image for image in images if image not in scouts]


def _is_scout(image: Image) -> bool:
    frames = [frame for file in image.files for frame in frames_of(file)]
    if any(frame.orientation is None or frame.position is None for frame in frames):
        return False
    normals = np.array([np.cross(frame.orientation[:3], frame.orientation[3:]) for frame in frames])  # type: ignore[index]
    planes = Counter(np.abs(normals).argmax(axis=1).tolist())
    # a single slice of deviating orientation makes a faulty volume, not a localizer
    few = max(planes.values()) <= _SCOUT_SLICES
    return few and len(planes) > 1 and 3 * min(planes.values()) >= max(planes.values())

"""An image among DICOM files: the slices of a series, or a single file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from aeflow_monai.data.dicom.frames import has_place
from aeflow_monai.data.dicom.headers import DicomFile
from aeflow_monai.data.dicom.paths import SEPARATOR
from aeflow_monai.printable import some

__all__ = ["Contents", "Image", "helper_kind", "no_single_image"]


class Image(NamedTuple):
    """The files that are read as one image: the slices of a series, or a single file.

    Attributes:
        folder: folder of its files.
        name: name of the image in the folder: the number of its series, or the name of a single file.
        files: the files that it is read from.
        problem: why it cannot be read, with the remedy; empty if it can.
        others: other files of its series, such as localizers.
    """

    folder: Path
    name: str
    files: tuple[DicomFile, ...]
    problem: str = ""
    others: tuple[DicomFile, ...] = ()

    @property
    def series(self) -> str:
        """SeriesInstanceUID, which is never written anywhere."""
        return self.files[0].text("SeriesInstanceUID")

    @property
    def patient(self) -> tuple[str, str]:
        """Key of its patient (PatientID, or the study without one), which is never written anywhere."""
        return self.files[0].text("PatientID"), "" if self.files[0].text("PatientID") else self.files[0].text(
            "StudyInstanceUID"
        )

    @property
    def study(self) -> str:
        """StudyInstanceUID, which is never written anywhere."""
        return self.files[0].text("StudyInstanceUID")

    @property
    def helper(self) -> str:
        """Kind of auxiliary image, such as a localizer; empty for any other image."""
        return helper_kind(self.files[0]) if all(helper_kind(file) for file in self.files) else ""

    @property
    def is_stack(self) -> bool:
        """Whether its files are slices of a volume."""
        return len(self.files) > 1

    @property
    def path(self) -> Path:
        """Path of the image in a datalist: its file, or its folder and series."""
        if len(self.files) == 1:
            return self.files[0].path
        return self.folder.with_name(f"{self.folder.name}{SEPARATOR}{self.name}")


class Contents(NamedTuple):
    """The contents of a folder of DICOM files.

    Attributes:
        images: images, readable or with a problem, in the order of their series.
        unused: files that belong to no image, with the reason.
    """

    images: tuple[Image, ...]
    unused: dict[Path, str]


def helper_kind(file: DicomFile) -> str:
    """Return the kind of an auxiliary file (a localizer or screenshot); empty for an image in its own right."""
    if "LOCALIZER" in file.image_type:
        return "a localizer"
    return "a screenshot or the like" if "secondary capture" in file.kind.lower() and not has_place(file) else ""


def no_single_image(path: Path, contents: Contents) -> str:
    """Return the error for a path that names no image, or several."""
    found = some([_told(image) for image in contents.images])
    if not contents.images:
        reasons = some([f"{file.name} is {reason}" for file, reason in contents.unused.items()], 3)
        return f"Expected a DICOM image in {path}; got none ({reasons}). Put the files of one series there."
    return (
        f"Expected one DICOM image in {path}; got {len(contents.images)}: {found}. Name one of them in place of "
        "the folder."
    )


def _told(image: Image) -> str:
    """Describe an image in a message, without patient data from its header."""
    slices = sum(file.frames for file in image.files)
    return f"{image.path} ({slices} slices)" if slices > 1 else str(image.path)

"""An image among DICOM files: the slices of a series, or a file by itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from aeflow_monai.data.dicom.frames import has_place
from aeflow_monai.data.dicom.headers import DicomFile
from aeflow_monai.data.dicom.paths import SEPARATOR
from aeflow_monai.printable import some

__all__ = ["Contents", "Image", "helper_kind", "no_single_image"]


class Image(NamedTuple):
    """What is read as one image: the slices of a series, or a file by itself.

    Attributes:
        folder: of its files.
        name: of the image among those in the folder: the number of the series, or of a file by itself that.
        files: that it is read from.
        problem: what keeps it from being read, with the remedy; empty if nothing does.
        others: files of its series that are no slices of it, such as localizers.
    """

    folder: Path
    name: str
    files: tuple[DicomFile, ...]
    problem: str = ""
    others: tuple[DicomFile, ...] = ()

    @property
    def series(self) -> str:
        """Identifier of its series, which is never written anywhere."""
        return self.files[0].text("SeriesInstanceUID")

    @property
    def patient(self) -> tuple[str, str]:
        """What tells its patient from others, which is never written anywhere."""
        return self.files[0].text("PatientID"), "" if self.files[0].text("PatientID") else self.files[0].text(
            "StudyInstanceUID"
        )

    @property
    def study(self) -> str:
        """Identifier of its study, which is never written anywhere."""
        return self.files[0].text("StudyInstanceUID")

    @property
    def helper(self) -> str:
        """What it is if it only helps to look at other images, such as a localizer; else empty."""
        return helper_kind(self.files[0]) if all(helper_kind(file) for file in self.files) else ""

    @property
    def is_stack(self) -> bool:
        """Whether its files are slices of a volume."""
        return len(self.files) > 1

    @property
    def path(self) -> Path:
        """How a datalist names it: by its file, or by its folder and series."""
        if len(self.files) == 1:
            return self.files[0].path
        return self.folder.with_name(f"{self.folder.name}{SEPARATOR}{self.name}")


class Contents(NamedTuple):
    """What the DICOM files of a folder are.

    Attributes:
        images: that can be read, or have a problem, in the order of their series.
        unused: files that are in no image, with the reason.
    """

    images: tuple[Image, ...]
    unused: dict[Path, str]


def helper_kind(file: DicomFile) -> str:
    """What a file is that only helps to look at other images; empty if it is an image in its own right."""
    if "LOCALIZER" in file.image_type:
        return "a localizer"
    return "a screenshot or the like" if "secondary capture" in file.kind.lower() and not has_place(file) else ""


def no_single_image(path: Path, contents: Contents) -> str:
    """The error for a path that names no image, or several."""
    found = some([_told(image) for image in contents.images])
    if not contents.images:
        reasons = some([f"{file.name} is {reason}" for file, reason in contents.unused.items()], 3)
        return f"Expected a DICOM image in {path}; got none ({reasons}). Put the files of one series there."
    return (
        f"Expected one DICOM image in {path}; got {len(contents.images)}: {found}. Name one of them in place of "
        "the folder."
    )


def _told(image: Image) -> str:
    """An image in a message, without what its header says of the patient."""
    slices = sum(file.frames for file in image.files)
    return f"{image.path} ({slices} slices)" if slices > 1 else str(image.path)

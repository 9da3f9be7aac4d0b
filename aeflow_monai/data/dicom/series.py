"""The images among the DICOM files of a folder: each file is in one of them, or named with the reason why it is not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aeflow_monai.data.dicom.claims import size_problem, understood
from aeflow_monai.data.dicom.complete import GridError, require_declared
from aeflow_monai.data.dicom.frames import frames_of, has_place
from aeflow_monai.data.dicom.grid import grid_of
from aeflow_monai.data.dicom.headers import DicomFile, quiet, read_header, require_libraries
from aeflow_monai.data.dicom.mosaic import is_mosaic
from aeflow_monai.data.dicom.paths import SEPARATOR, dicom_paths
from aeflow_monai.printable import some

__all__ = ["Contents", "Image", "contents_of", "image_in_file", "no_single_image"]

# Words in the names of SOP classes whose images lie nowhere in space and are pictures each.
_PROJECTIONS = (
    *("computed radiography", "digital x-ray", "digital mammography", "digital intra-oral", "x-ray angiographic"),
    *("x-ray radiofluoroscopic", "ultrasound", "nuclear medicine", "rt image", "vl ", "ophthalmic"),
    "secondary capture",
)
_SCOUT_SLICES = 10  # of a localizer in one plane, at most
_TO_CHOOSE = "convert it to NIfTI, for example with dcm2niix, and give one of its volumes"


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
        return _helper(self.files[0]) if all(_helper(file) for file in self.files) else ""

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


def contents_of(folder: Path) -> Contents:
    """Look at all DICOM files of a folder, not deeper; again only if one of them has changed.

    Args:
        folder: that holds them.

    Returns:
        The images that they make up, and the files that are in none.
    """
    return _contents(folder, tuple(sorted(_state(path) for path in folder.iterdir())))


def _state(path: Path) -> tuple[str, int, int, int]:
    """What changes with the content of a file."""
    try:
        found = path.stat()
    except OSError:
        return path.name, -1, -1, -1
    return path.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=16)
def _contents(folder: Path, _files: tuple[tuple[str, int, int, int], ...]) -> Contents:
    require_libraries()
    with quiet():
        files = [read_header(path) for path in dicom_paths(folder)]
    unused = {file.path: file.other for file in files if file.other}
    files = [understood(file) for file in files]
    damaged = [file for file in files if file.damage and not file.other]
    whole = _without_helpers([file for file in files if not file.damage and not file.other], unused)
    by_series: dict[str, list[DicomFile]] = defaultdict(list)
    for file in whole:
        by_series[file.text("SeriesInstanceUID")].append(file)
    others = {
        uid: [file for file in files if file.text("SeriesInstanceUID") == uid and file.path in unused]
        for uid in by_series
    }
    images = [image for uid, members in by_series.items() for image in _images_of(folder, members, tuple(others[uid]))]
    images = _without_scouts(_with_damaged(folder, images, damaged), unused)
    return Contents(tuple(_named(images)), unused)


def image_in_file(path: Path) -> Image:
    """A file by itself.

    Args:
        path: of the file.

    Returns:
        The image. If it is none, its problem says so.
    """
    require_libraries()
    file = understood(read_header(path))
    if file.other:
        return Image(path.parent, path.stem, (file,), f"Expected an image in {path}; got {file.other}.")
    if file.damage:
        problem = f"Expected an image in {path}; got a damaged DICOM file: {file.damage}. Get it again."
        return Image(path.parent, path.stem, (file,), problem)
    return _image(path.parent, (file,))


def _without_helpers(files: Sequence[DicomFile], unused: dict[Path, str]) -> list[DicomFile]:
    """The files without localizers and screenshots, unless their study has nothing else in the folder."""
    helpers = {file.path: kind for file in files if (kind := _helper(file))}
    placed = {file.text("StudyInstanceUID") for file in files if file.path not in helpers and has_place(file)}
    left_out = {file.path for file in files if file.path in helpers and file.text("StudyInstanceUID") in placed}
    unused.update({path: f"{helpers[path]} beside images in space" for path in left_out})
    return [file for file in files if file.path not in left_out]


def _helper(file: DicomFile) -> str:
    """What a file is that only helps to look at other images; empty if it is an image in its own right."""
    if "LOCALIZER" in file.image_type:
        return "a localizer"
    return "a screenshot or the like" if "secondary capture" in file.kind.lower() and not has_place(file) else ""


def _images_of(folder: Path, files: Sequence[DicomFile], others: tuple[DicomFile, ...]) -> list[Image]:
    """The images of one series."""
    alone, mosaics, slices = [], [], []
    for file in files:
        if is_mosaic(file):
            mosaics.append(file)
        elif file.frames > 1 or (any(name in file.kind.lower() for name in _PROJECTIONS) and not has_place(file)):
            alone.append(file)
        else:
            slices.append(file)
    images = [_image(folder, (file,)) for file in alone]
    if len(mosaics) == 1:
        images.append(_image(folder, tuple(mosaics)))
    elif mosaics:
        problem = (
            f"Expected one volume in {folder}; got a series of {len(mosaics)} mosaics, each a volume of one time "
            f"point, such as {mosaics[0].path.name}. Name one of the files, or {_TO_CHOOSE}."
        )
        images.append(Image(folder, "", tuple(mosaics), problem))
    if slices:
        images.append(_image(folder, tuple(slices), others, all_there=True))
    return images


def _image(
    folder: Path, files: tuple[DicomFile, ...], others: tuple[DicomFile, ...] = (), all_there: bool = False
) -> Image:
    """An image, with what is wrong with it; `all_there` if no slice may be missing, as of one that was named."""
    image = Image(folder, "", files, "", others)
    where = files[0].path if len(files) == 1 else folder
    problem = (_single_problem(files[0]) if len(files) == 1 else "") or size_problem(files, where)
    if not problem and (len(files) > 1 or (has_place(files[0]) and not is_mosaic(files[0]))):
        try:
            frames = grid_of([frame for file in files for frame in frames_of(file)], others).frames
            if all_there:
                require_declared(frames)
        except GridError as error:
            problem = f"Expected one volume in {where}; got {error}."
        except Exception:  # one malformed image ends nothing for the others; the text may quote a value
            problem = (
                f"Expected one volume in {where}; got headers that cannot be understood, such as that of "
                f"{files[0].path.name}. Export the series again."
            )
    return image._replace(problem=problem)


def _single_problem(file: DicomFile) -> str:
    """What keeps a file from being read by itself."""
    got = ""
    if "Whole Slide" in file.kind:
        got = "the tiles of a microscope's slide"
    elif (file.whole("InConcatenationTotalNumber") or (2 if file.text("ConcatenationUID") else 1)) > 1:
        got = "one of the parts of an image that is divided among files"
    elif file.frames > 1 and not has_place(file):
        got = f"{file.frames} frames that lie nowhere in space, as of a film"
    elif (groups := file.items("PerFrameFunctionalGroupsSequence")) and len(groups) != file.frames:
        got = f"{file.frames} frames, where the header describes {len(groups)}"
    return f"Expected one image or volume in {file.path}; got {got}. Take it out, or {_TO_CHOOSE}." if got else ""


def _with_damaged(folder: Path, images: Sequence[Image], damaged: Iterable[DicomFile]) -> list[Image]:
    """The images, where a damaged file is a problem of the volume that it may be a slice of, or one by itself."""
    owned: dict[int, list[DicomFile]] = defaultdict(list)
    alone: dict[str, list[DicomFile]] = defaultdict(list)
    for file in damaged:
        uid = file.text("SeriesInstanceUID")
        owners = [
            i
            for i, image in enumerate(images)
            if not _stands_alone(image) and (image.series == uid if uid else image.is_stack)
        ]
        for i in owners:
            owned[i].append(file)
        if not owners:
            alone[uid or file.path.as_posix()].append(file)
    tainted = [
        image._replace(problem=_damage(folder, owned[i])) if i in owned else image for i, image in enumerate(images)
    ]
    return [*tainted, *(Image(folder, "", tuple(files), _damage(folder, files)) for files in alone.values())]


def _stands_alone(image: Image) -> bool:
    file = image.files[0]
    return len(image.files) == 1 and (file.frames > 1 or is_mosaic(file) or not has_place(file))


def _damage(where: Path, files: Sequence[DicomFile]) -> str:
    found = some([f"{file.path.name} ({file.damage})" for file in files], 3)
    return (
        f"Expected whole DICOM files in {where}; got {len(files)} damaged: {found}. Get "
        f"{'it' if len(files) == 1 else 'them'} again; what is left of the series is no whole volume."
    )


def _named(images: Sequence[Image]) -> list[Image]:
    """The images in the order of their series, each with a name of its own in the folder."""

    def number(image: Image) -> int:
        value = image.files[0].whole("SeriesNumber")
        return -1 if value is None else value

    images = sorted(images, key=lambda image: (number(image), image.series, image.files[0].path.as_posix()))
    alike = defaultdict(list)
    for image in images:
        if image.is_stack:
            alike[max(number(image), 0)].append(image)
    names = {
        id(image): f"{value}.{i + 1}" if len(group) > 1 else f"{value}"
        for value, group in alike.items()
        for i, image in enumerate(group)
    }
    return [image._replace(name=names.get(id(image), image.files[0].path.stem)) for image in images]


def _without_scouts(images: Sequence[Image], unused: dict[Path, str]) -> list[Image]:
    """The images without localizers that are not marked so: a few slices each in planes that cross."""
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
    # one slice of a volume that lies otherwise is no localizer, but a fault
    few = max(planes.values()) <= _SCOUT_SLICES
    return few and len(planes) > 1 and 3 * min(planes.values()) >= max(planes.values())


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

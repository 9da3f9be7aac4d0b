"""Layout of DICOM folders: one entry for each image that the files of a folder make up."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from aeflow_monai.data.datalist.entries import UNSPLIT, Entry, Request
from aeflow_monai.data.datalist.image_files import is_series, series_below, subfolders
from aeflow_monai.data.dicom.frames import frames_of, has_place
from aeflow_monai.data.dicom.image import Contents, Image, no_single_image
from aeflow_monai.data.dicom.paths import split_name
from aeflow_monai.data.dicom.series import contents_of
from aeflow_monai.printable import some

REMEDY = "Expected folders of DICOM files in it or below."

_logger = logging.getLogger(__name__)

_PART = 0.75  # of the slices of a copy that cannot be read itself


def has_dicom(root: Path) -> bool:
    """Whether the folder or a direct subfolder holds DICOM files."""
    return is_series(root) or any(is_series(folder) for folder in subfolders(root))


def read_dicom(root: Path, request: Request) -> list[Entry]:
    """Return all series as normal entries; the first folder below the root names the patient."""
    return [entry._replace(label=0) for entry in series_entries(series_below(root), root, request)]


def series_entries(folders: Iterable[Path], root: Path, request: Request, required: bool = True) -> list[Entry]:
    """Return an entry for each chosen image in DICOM folders; `required` raises an error if none is chosen."""
    found = _without_helpers(_with_spread({folder: contents_of(folder) for folder in folders}))
    entries, left = [], 0
    for folder, contents in found.items():
        if contents.unused:
            told = some([f"{file.name} is {reason}" for file, reason in contents.unused.items()], 3)
            _logger.warning(f"{folder}: {len(contents.unused)} DICOM files are in no image: {told}.")
        chosen = [image for image in contents.images if _is_chosen(image, request.series)]
        left += len(contents.images) - len(chosen)
        entries += [_entry(image, contents, _patient(image, contents, root)) for image in chosen]
    if left and not entries and required:
        raise ValueError(
            f"None of the {left} DICOM images in {root} is of the series {' or '.join(request.series)}. Expected the "
            "number of a series, its SeriesInstanceUID or a modality such as MR: correct --series, or leave it out. "
            f"The images: {some([image.path for contents in found.values() for image in contents.images])}."
        )
    if left:
        _logger.warning(
            f"{root}: {left} DICOM images are not used, since --series chooses {', '.join(request.series)}."
        )
    return entries


def source_problem(path: Path) -> str:
    """Return why a folder of DICOM files, or a series in one, cannot be read; empty if it can."""
    folder, name = split_name(path)
    if not folder.is_dir():
        return ""
    contents = contents_of(folder)
    images = [image for image in contents.images if not name or (image.is_stack and image.name == name)]
    return images[0].problem if len(images) == 1 else no_single_image(path, contents)


def _entry(image: Image, contents: Contents, patient: str) -> Entry:
    path, named, problem = image.path, None, image.problem
    if len(contents.images) == 1:
        path = image.folder
    elif image.is_stack:
        named = image.folder / f"{image.folder.name}_{image.name}"
        if path.exists():
            problem = f"The series {image.name} of {image.folder} is called {path}, as a folder is. Rename that folder."
            path = image.files[0].path
    return Entry(
        UNSPLIT,
        (path,),
        patient=patient,
        named=named,
        problem=problem,
        patient_id=image.patient[0],
        examined=True,
    )


def _patient(image: Image, contents: Contents, root: Path) -> str:
    """Return the first folder below the root, or a root with several series; numbered if it holds several patients."""
    inner = image.folder.relative_to(root).parts
    name = inner[0] if inner else image.folder.name if len(contents.images) > 1 else ""
    patients = sorted({other.patient for other in contents.images})
    return f"{name}_{patients.index(image.patient) + 1}" if len(patients) > 1 else name


def _is_chosen(image: Image, series: Sequence[str]) -> bool:
    if not series:
        return True
    file = image.files[0]
    known = {image.name, str(file.whole("SeriesNumber")), image.series, file.text("Modality").lower()}
    return any(name in known or name.lower() in known for name in series)


def _with_spread(found: dict[Path, Contents]) -> dict[Path, Contents]:
    """Add a problem to images of one series whose slices are spread over several folders."""
    by_series: dict[str, list[Image]] = defaultdict(list)
    for contents in found.values():
        for image in contents.images:
            if image.is_stack and image.series:
                by_series[image.series].append(image)
    problems = {}
    for images in by_series.values():
        places = [_places(image) for image in images]
        different = {*places}  # copies of a series are alike
        is_divided = len(different) > 1 and len(frozenset().union(*different)) == sum(map(len, different))
        # part of a copy beside a whole one is none of its own either
        whole = {own for image, own in zip(images, places, strict=True) if not image.problem}
        is_part = [
            # of a copy with a problem, such as a slice too many, a whole series may be nearly all
            is_divided or any(own < other and (other in whole or len(own) < _PART * len(other)) for other in different)
            for own in places
        ]
        parts = [image for image, part in zip(images, is_part, strict=True) if part]
        folders = some(sorted({str(image.folder) for image in images}))
        for image in parts:
            problems[image.path] = ("" if is_divided else image.problem) or (
                f"Expected one series in a folder; got the slices of one spread over {len(images)}: {folders}. Move "
                "them into one folder."
            )
    return {
        folder: contents._replace(
            images=tuple(image._replace(problem=problems.get(image.path, image.problem)) for image in contents.images)
        )
        for folder, contents in found.items()
    }


def _without_helpers(found: dict[Path, Contents]) -> dict[Path, Contents]:
    """Drop localizers and screenshots in folders of their own if their study has images with a position in space."""
    images = [image for contents in found.values() for image in contents.images]
    studies = {image.study for image in images if not image.helper and has_place(image.files[0])}
    kept = {}
    for folder, contents in found.items():
        helpers = [image for image in contents.images if image.helper and image.study in studies]
        unused = {file.path: f"{image.helper} of images in other folders" for image in helpers for file in image.files}
        rest = tuple(image for image in contents.images if image not in helpers)
        kept[folder] = Contents(rest, {**contents.unused, **unused})
    return kept


def _places(image: Image) -> frozenset[object]:
    """Return positions of the slices, or their numbers; images that divide a series have none in common."""
    frames = [frame for file in image.files for frame in frames_of(file)]
    # by number only where there is no position: echoes and times at the same positions may be numbered on
    return frozenset(frame.number if frame.position is None else frame.position for frame in frames)

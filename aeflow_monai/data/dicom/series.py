"""Group the DICOM files of a folder into images; each file is in an image, or listed with the reason why not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from aeflow_monai.data.dicom.claims import size_problem, understood
from aeflow_monai.data.dicom.complete import GridError, require_declared
from aeflow_monai.data.dicom.frames import frames_of, has_place
from aeflow_monai.data.dicom.grid import grid_of
from aeflow_monai.data.dicom.headers import DicomFile, quiet, read_header, require_libraries
from aeflow_monai.data.dicom.image import Contents, Image
from aeflow_monai.data.dicom.localizers import without_helpers, without_scouts
from aeflow_monai.data.dicom.mosaic import is_mosaic
from aeflow_monai.data.dicom.paths import dicom_paths
from aeflow_monai.printable import some

__all__ = ["contents_of", "image_in_file"]


# Words in the names of SOP classes whose files are separate 2D images without a position in space.
_PROJECTIONS = (
    *("computed radiography", "digital x-ray", "digital mammography", "digital intra-oral", "x-ray angiographic"),
    *("x-ray radiofluoroscopic", "ultrasound", "nuclear medicine", "rt image", "vl ", "ophthalmic"),
    "secondary capture",
)
_TO_CHOOSE = "convert it to NIfTI, for example with dcm2niix, and give one of its volumes"


def contents_of(folder: Path) -> Contents:
    """Read the headers of all DICOM files directly in a folder; the result is cached until one of them changes.

    Args:
        folder: folder of the files.

    Returns:
        The images that they form, and the files that belong to none.
    """
    return _contents(folder, tuple(sorted(_state(path) for path in folder.iterdir())))


def _state(path: Path) -> tuple[str, int, int, int]:
    """Return a state that changes with the content of a file."""
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
    whole = without_helpers([file for file in files if not file.damage and not file.other], unused)
    by_series: dict[str, list[DicomFile]] = defaultdict(list)
    for file in whole:
        by_series[file.text("SeriesInstanceUID")].append(file)
    others = {
        uid: [file for file in files if file.text("SeriesInstanceUID") == uid and file.path in unused]
        for uid in by_series
    }
    images = [image for uid, members in by_series.items() for image in _images_of(folder, members, tuple(others[uid]))]
    images = without_scouts(_with_damaged(folder, images, damaged), unused)
    return Contents(tuple(_named(images)), unused)


def image_in_file(path: Path) -> Image:
    """Return the image in a single file.

    Args:
        path: path of the file.

    Returns:
        The image. If the file holds none, its problem says so.
    """
    require_libraries()
    file = understood(read_header(path))
    if file.other:
        return Image(path.parent, path.stem, (file,), f"Expected an image in {path}; got {file.other}.")
    if file.damage:
        problem = f"Expected an image in {path}; got a damaged DICOM file: {file.damage}. Get it again."
        return Image(path.parent, path.stem, (file,), problem)
    return _image(path.parent, (file,))


def _images_of(folder: Path, files: Sequence[DicomFile], others: tuple[DicomFile, ...]) -> list[Image]:
    """Return the images of one series."""
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
    """Return an image with its problem, if any; `all_there` requires the declared number of slices."""
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
        except Exception:  # a malformed image must not stop the others, and the error's text may quote a value
            problem = (
                f"Expected one volume in {where}; got headers that cannot be understood, such as that of "
                f"{files[0].path.name}. Export the series again."
            )
    return image._replace(problem=problem)


def _single_problem(file: DicomFile) -> str:
    """Return why a file cannot be read as an image of its own; empty if it can."""
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
    """Return the images, with each damaged file a problem of the volume it may belong to, or an image of its own."""
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
    """Return the images in the order of their series, each with a unique name in the folder."""

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

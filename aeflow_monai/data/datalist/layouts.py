"""The known layouts of a data set, and recognition of the one that a folder has."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from aeflow_monai.data.datalist import bids, class_folders, medmnist, volumes
from aeflow_monai.data.datalist import dicom_series as dicom
from aeflow_monai.data.datalist.entries import Entry, Request
from aeflow_monai.data.datalist.image_files import EXTENSIONS
from aeflow_monai.data.datalist.naming import path_problem
from aeflow_monai.data.datalist.tables import read_json, read_table
from aeflow_monai.data.datalist.walking import exists
from aeflow_monai.files import user_path
from aeflow_monai.printable import shown, some

_logger = logging.getLogger(__name__)


class Layout(NamedTuple):
    """How a layout is recognised and read, and the remedy if that fails."""

    read: Callable[[Path, Request], list[Entry]]
    remedy: str
    fits: Callable[[Path, Request], bool] = lambda source, request: False
    files: tuple[str, ...] = ()  # names of the file to read, if a folder is given
    suffix: str = ""  # of that file
    modalities: bool = False  # whether modalities can be chosen among the files of a case
    plural: str = "images"


# in the order in which they are tried
LAYOUTS = {
    "manifest": Layout(
        lambda source, request: read_table(source, request.labels),
        "Its column split says train, validation or test; normal images have 0 in its column abnormal.",
        files=("manifest.csv",),
        suffix=".csv",
    ),
    "decathlon": Layout(
        lambda source, request: read_json(source),
        'Its key "training" lists training images, "test" test images; normal ones have "label": 0, an '
        "empty mask or, in training only, neither.",
        files=("dataset.json", "datalist.json"),
        suffix=".json",
    ),
    "medmnist": Layout(medmnist.read_medmnist, medmnist.REMEDY, files=("*.npz",), suffix=".npz"),
    "classes": Layout(
        class_folders.read_class_folders,
        class_folders.REMEDY,
        class_folders.has_class_folders,
        plural="class folders",
    ),
    "bids": Layout(
        bids.read_bids,
        bids.BIDS_REMEDY,
        lambda source, request: bids.has_bids(source),
        modalities=True,
    ),
    "brats": Layout(
        volumes.read_brats,
        volumes.BRATS_REMEDY,
        lambda source, request: volumes.has_brats(source),
        modalities=True,
    ),
    "dicom": Layout(
        dicom.read_dicom,
        dicom.REMEDY,
        lambda source, request: dicom.has_dicom(source),
        plural="DICOM folders",
    ),
    "folder": Layout(
        volumes.read_folder,
        volumes.FOLDER_REMEDY,
        lambda source, request: volumes.has_images(source),
        modalities=True,
        plural="volumes",
    ),
}
LISTS = ("manifest", "decathlon")  # layouts whose items name their files
_UNLABELLED = ("classes", "dicom", "folder")  # for these, inference takes every image below the folder


def recognize(
    dataset_dir: str | os.PathLike[str], layout: str, request: Request, inference: bool = False
) -> tuple[str, Path]:
    """Return the name of the layout, and the file or folder to read."""
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout has to be one of auto, {', '.join(LAYOUTS)}; got {layout!r}.")
    path = existing(dataset_dir)
    if layout == "auto":
        name, source = _search(path, request, inference)
    else:
        name, source = layout, _source(path, layout)
    if request.modalities and not LAYOUTS[name].modalities and name not in LISTS:
        able = [name for name, known in LAYOUTS.items() if known.modalities]
        raise ValueError(
            f"modalities are {', '.join(request.modalities)}, but the layout {name!r} of {source} says itself which "
            f"files make up an item. Leave them out, or give --layout {' or '.join(able)}."
        )
    if request.series and source.is_file():
        _logger.warning(
            f"--series {', '.join(request.series)} chooses nothing in {shown(source)}: a list names its series itself, "
            "as export#2."
        )
    return name, source


def existing(dataset_dir: str | os.PathLike[str]) -> Path:
    """Return the absolute path of an existing file or folder, with links unresolved."""
    if str(dataset_dir).startswith(medmnist.PREFIX):
        return medmnist.fetch_medmnist(str(dataset_dir))
    path = user_path(dataset_dir).absolute()
    if problem := path_problem(path):
        raise ValueError(problem)
    if not exists(path):
        raise FileNotFoundError(f"There is no file or folder {path}. Say where the images are with --dataset_dir.")
    return path


def _search(path: Path, request: Request, inference: bool) -> tuple[str, Path]:
    for name, layout in LAYOUTS.items():
        if path.is_file() and layout.suffix and path.suffix.lower() == layout.suffix:
            return name, path
        if path.is_dir():
            for file in layout.files:
                if name != "medmnist" and (path / file).is_file():
                    return name, path / file
            if not (inference and name in _UNLABELLED) and layout.fits(path, request):
                return name, path
    if path.is_file():
        raise ValueError(
            "Expected a folder or a datalist (.csv, .json) or a MedMNIST file (.npz), for inference also an image "
            f"({', '.join(EXTENSIONS)}) or a list of an archive (.txt, .jsonl); got {path}. {_remedy_of(path)}"
        )
    return "folder" if inference else "classes", path


def _remedy_of(path: Path) -> str:
    """Return what to do with a file that is neither an image nor a list."""
    if path.suffix.lower() in (".zip", ".tar", ".tgz", ".7z", ".rar") or path.name.lower().endswith(".tar.gz"):
        return "Unpack it, and give the folder."
    if path.suffix.lower() in (".xlsx", ".xls", ".ods", ".parquet", ".tsv"):
        return "Save the table as CSV, with commas."
    if path.name.upper() == "DICOMDIR":
        return f"Give its folder, {path.parent}."
    return "Give another one with --dataset_dir."


def _source(path: Path, layout: str) -> Path:
    """Return the file or folder that a requested layout reads."""
    wanted = LAYOUTS[layout]
    if not wanted.files:
        if path.is_file():
            raise ValueError(f"The layout {layout!r} is one of a folder; got the file {path}. {wanted.remedy}")
        return path
    if path.is_file():
        if path.suffix.lower() != wanted.suffix:
            raise ValueError(f"The layout {layout!r} is a {wanted.suffix} file; got {path}. {wanted.remedy}")
        return path
    found = [file for name in wanted.files for file in sorted(path.glob(name))]
    if not found or (layout == "medmnist" and len(found) > 1):
        raise FileNotFoundError(
            f"The layout {layout!r} needs one {' or '.join(wanted.files)} in {path}; found {some(found)}. Put it "
            "there, or give the file with --dataset_dir."
        )
    return found[0]

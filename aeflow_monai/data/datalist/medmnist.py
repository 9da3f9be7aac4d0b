"""MedMNIST: all images of a data set in one .npz file, unpacked once into a folder per class."""

from __future__ import annotations

import importlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aeflow_monai.data.datalist.class_folders import read_class_folders
from aeflow_monai.data.datalist.entries import Entry, Request
from aeflow_monai.data.datalist.found_images import images_below
from aeflow_monai.files import new_folder
from aeflow_monai.printable import first_line

_Array = NDArray[Any]
PREFIX = "medmnist:"
REMEDY = "A MedMNIST file has train_images, train_labels and, if wanted, the same of val and test."


def fetch_medmnist(name: str) -> Path:
    """Return the file of `medmnist:<flag>` or `medmnist:<flag>_<size>`, downloaded by medmnist if missing."""
    flag, _, size = name.removeprefix(PREFIX).partition("_")
    try:
        medmnist: Any = importlib.import_module("medmnist")
    except ImportError as error:
        raise ImportError(
            f"{name!r} needs the package medmnist, which fetches the file: pip install medmnist. Or get {flag}.npz "
            "from https://medmnist.com and give its path as --dataset_dir."
        ) from error
    if flag not in medmnist.INFO or not (size.isdigit() or not size):
        raise ValueError(
            f"Expected {PREFIX}<flag> or {PREFIX}<flag>_<size> with a flag of {', '.join(medmnist.INFO)}; got {name!r}."
        )
    size = "" if size == "28" else size
    root = Path(importlib.import_module("medmnist.dataset").DEFAULT_ROOT)
    file = root / f"{flag}{f'_{size}' if size else ''}.npz"
    if not file.is_file():
        kind = getattr(medmnist, medmnist.INFO[flag]["python_class"])
        try:
            kind(split="train", download=True, root=str(root), size=int(size) if size else None)
        except RuntimeError as error:
            raise ConnectionError(
                f"{name!r} could not be fetched: {error}. Get {file.name} from https://medmnist.com, and put it into "
                f"{root} or give its path as --dataset_dir."
            ) from error
    return file


def read_medmnist(file: Path, request: Request) -> list[Entry]:
    """Return the images of all splits; normal classes are given as label values."""
    folder = unpack(file)
    kinds = Counter(path.parent.name for path in images_below(folder))
    if not {str(name) for name in request.normal_classes} & kinds.keys():
        found = ", ".join(f"{kind} ({count} images)" for kind, count in sorted(kinds.items()))
        raise ValueError(
            f"None of the labels of {file} is {' or '.join(request.normal_classes)}; found: {found}. Name the normal "
            "ones with --normal_classes, for example \"['0']\"."
        )
    return read_class_folders(folder, request)


def unpack(file: Path) -> Path:
    """Write each image as PNG or NIfTI into `<split>/<label>/` in a folder beside the file, unless that exists."""
    folder = file.with_name(f"{file.stem}-{_fingerprint(file)}")
    if folder.is_dir():
        return folder
    try:
        with new_folder(folder) as unfinished:
            _write_images(file, unfinished)
    except OSError as error:
        if not folder.is_dir():  # else another process has just written it
            raise OSError(
                f"The images of {file} are unpacked beside it, which failed: {error}. Copy the file to a folder that "
                "can be written to and has space for them."
            ) from error
    return folder


def _write_images(file: Path, folder: Path) -> None:
    for split, images, labels in _splits(file):
        for i, (image, label) in enumerate(zip(images, labels.reshape(len(images), -1), strict=True)):
            target = folder / split / _kind(label) / f"{split}_{i:06d}"
            target.parent.mkdir(parents=True, exist_ok=True)
            if image.ndim == 3 and image.shape[-1] != 3:
                nib.save(nib.Nifti1Image(image, np.eye(4)), f"{target}.nii.gz")
            else:
                Image.fromarray(image).save(f"{target}.png")


def _splits(file: Path) -> Iterator[tuple[str, _Array, _Array]]:
    """Yield name, images and labels of each split, checked."""
    with _naming_damage(file):
        arrays = np.load(file, allow_pickle=False)
    with arrays:
        splits = [name for name in ("train", "val", "test") if f"{name}_images" in arrays]
        if not splits or any(f"{name}_labels" not in arrays for name in splits):
            raise ValueError(f"{file} is no MedMNIST file; its arrays are {', '.join(arrays) or 'none'}. {REMEDY}")
        for split in splits:
            with _naming_damage(file):
                images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            _check_split(file, split, images, labels)
            yield split, images, labels


def _check_split(file: Path, split: str, images: _Array, labels: _Array) -> None:
    n_labels = len(labels) if labels.ndim and labels.size else 0
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or n_labels != len(images) or not images.size:
        raise ValueError(
            f"{file}: {split}_images has to be uint8 (N, H, W), (N, H, W, 3) or (N, D, H, W) with N labels; "
            f"got {images.dtype} {images.shape} and {n_labels} labels."
        )
    if not np.issubdtype(labels.dtype, np.integer):  # labels become folder names, and text could contain a path
        raise ValueError(f"{file}: {split}_labels has to be whole numbers; got {labels.dtype}.")


@contextmanager
def _naming_damage(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file raises many kinds of errors
        raise ValueError(
            f"{file} is damaged, or no .npz file of numbers: {first_line(error) or type(error).__name__}. Delete it "
            "and get it again."
        ) from error


def _kind(label: _Array) -> str:
    """Return the value of a single label, or the indices of the labels that apply if there are several."""
    if len(label) == 1:
        return str(label[0])
    return "+".join(str(i) for i in np.flatnonzero(label)) or "none"


def _fingerprint(file: Path) -> str:
    """Return a fingerprint of the contents, from the checksums stored in the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            sums = "".join(f"{member.filename}{member.CRC}" for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file} is no .npz file: {error}. Delete it and get it again.") from error
    return f"{zlib.crc32(sums.encode()):08x}"

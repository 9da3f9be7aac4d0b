"""Loading a case from its files: errors name file, fault and remedy."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImage, MapTransform
from monai.utils import MetaKeys, ensure_tuple
from PIL import Image
from torch import Tensor

from aeflow_monai.data.dicom.paths import split_name
from aeflow_monai.data.dicom.reading import is_dicom_source, read_dicom_image
from aeflow_monai.errors import first_line
from aeflow_monai.files import gzip as fast_gzip
from aeflow_monai.files import sha256_of
from aeflow_monai.geometry import PICTURES, TOLERANCE_MM, any_picture, check_affine, corner_distance

__all__ = ["LoadCased"]


class LoadCased(MapTransform):  # type: ignore[misc]
    """Load the images of a case with the channel first, or say what is wrong with the file.

    Does what MONAI's `LoadImaged` and `EnsureChannelFirstd` do, and what they leave to a reader's obscure error or let
    pass in silence: a compressed file is read to its end, which shows whether it is whole; several files of one key
    (modalities) become channels if they lie on one grid, to 0.01 mm. Two entries of a datalist are obeyed and taken
    out: "problem", a text that says what is known to be wrong with this case, and "sha256", a dictionary from path to
    hexadecimal digest, which the files have to have still.

    What is a tensor already, with the channel first, passes as it is.

    Args:
        keys: of paths, or lists of paths.
        reader: names of MONAI's readers; the last that can read a file does.
        allow_missing_keys: pass over keys that are not there, such as a mask.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> file = Path(tempfile.mkdtemp()) / "scan.nii.gz"
        >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6), dtype=np.float32), np.eye(4)), file)
        >>> tuple(LoadCased("image")({"image": str(file)})["image"].shape)
        (1, 4, 5, 6)
    """

    def __init__(
        self,
        keys: KeysCollection,
        reader: Sequence[str] | str = ("ITKReader", "NibabelReader"),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadImage(reader=reader, image_only=True)
        self.channel_first = EnsureChannelFirst()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load one case.

        Raises:
            ValueError: the case has a known problem; a file changed, cannot be read or has an affine that cannot be
                inverted; files of one key lie on different grids.
            FileNotFoundError: there is no such file.
        """
        d = dict(data)
        if problem := d.pop("problem", None):
            raise ValueError(str(problem))
        for file, digest in (d.pop("sha256", None) or {}).items():
            _check_unchanged(str(file), str(digest))
        for key in self.key_iterator(d):
            if isinstance(d[key], Tensor):
                continue
            files = [str(file) for file in ensure_tuple(d[key])]
            d[key] = _as_channels(files, [self._read(file) for file in files])
        return d

    def _read(self, file: str) -> MetaTensor:
        path = Path(file).expanduser()
        if not split_name(path)[0].exists():
            raise FileNotFoundError(
                f"Expected an image at {file}; there is no such file. Put it there, or correct the list."
            )
        if is_dicom_source(path):
            return read_dicom_image(path)
        _check_whole(path)
        _check_nifti_affine(path)
        try:
            image = self.channel_first(self.load(file))
        except Exception as error:
            raise ValueError(_unreadable(path, error)) from error
        image.meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = 0  # so that a second EnsureChannelFirst adds no dimension
        return image


def _check_unchanged(file: str, digest: str) -> None:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the file {file}, which the prepared data set lists; there is no such file. Put it back, or "
            "prepare the data set again."
        )
    found = sha256_of(path)
    if found != digest.lower():
        raise ValueError(
            f"The file {file} changed since the data set was prepared: expected SHA-256 {digest[:12]}..., got "
            f"{found[:12]}.... Restore the file, or prepare the data set again."
        )


def _check_whole(path: Path) -> None:
    """Read a compressed file to its end: readers stop at the last voxel, or fill the missing ones in silence."""
    suffix = path.suffix.lower()
    fault, remedy = "", "Copy or export the file again."
    if path.is_file() and path.stat().st_size == 0:
        fault = "an empty file"
    elif suffix == ".gz":
        # in a third of zlib's time; what it objects to, zlib explains below
        with contextlib.suppress(Exception):
            _read_to_end(fast_gzip.open, path)
            return
        try:
            _read_to_end(gzip.open, path)
        except EOFError:
            fault = "a truncated file: its compressed data end too early"
        except (gzip.BadGzipFile, zlib.error) as error:
            if path.read_bytes()[:2] == b"\x1f\x8b":
                fault = f"a damaged file: {error}"
            else:
                fault, remedy = "something that is not compressed with gzip", "Is it an image? Correct its extension."
    elif suffix in PICTURES:
        try:
            with Image.open(path) as picture:
                picture.load()
        except Exception as error:  # Pillow knows fewer formats than ITK, so only this word of it counts
            if "truncated" in str(error).lower():
                fault = f"a truncated file: {error}"
    if fault:
        raise ValueError(f"Expected an image in {path}; got {fault}. {remedy}")


def _read_to_end(opener: Callable[[Path], Any], path: Path) -> None:
    with opener(path) as stream:
        while stream.read(2**20):
            pass


def _check_nifti_affine(path: Path) -> None:
    """Look at the affine as the file has it: MONAI's reader puts another in its place if it is degenerate."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    try:
        image = nib.load(path)
    except Exception:
        return  # which the reader explains
    check_affine(image.affine, str(path), min(3, len(image.shape)))


def _unreadable(path: Path, error: Exception) -> str:
    # that message is the tracebacks of a dozen readers
    unknown = "cannot find a suitable reader" in str(error)
    reason = "" if unknown else f" ({first_line(error) or type(error).__name__})"
    with path.open("rb") as stream:
        head = stream.read(132)
    if unknown:
        fault = f"content that no reader knows, beginning with {head[:12]!r}"
        remedy = "Is it an image, and whole? Correct its extension, or export it again."
    else:
        fault = f"a file that cannot be read{reason}"
        remedy = "It is probably truncated or damaged: copy or export it again."
    return f"Expected an image in {path}; got {fault}. {remedy}"


def _as_channels(files: Sequence[str], images: Sequence[MetaTensor]) -> MetaTensor:
    """Images (C_i, ...) of several files on one grid as one (sum of C_i, ...), with the metadata of the first."""
    first = images[0]
    if len(images) == 1:
        return first
    for file, image in zip(files[1:], images[1:], strict=True):
        if image.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"Expected modalities of one shape: {tuple(first.shape[1:])} in {files[0]}; got "
                f"{tuple(image.shape[1:])} in {file}. Resample them to one grid first."
            )
        if (distance := corner_distance(first, image)) > TOLERANCE_MM and not any_picture(files[0], file):
            raise ValueError(
                f"Expected modalities on one grid, that of {files[0]}; the corners of {file} lie up to "
                f"{distance:.3g} mm away from it. Register them and resample them to one grid first."
            )
    return MetaTensor(torch.cat([image.as_tensor() for image in images]), meta=first.meta)

"""Load a case from its files; errors name file, fault and remedy."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImage, MapTransform
from monai.utils import MetaKeys, ensure_tuple
from torch import Tensor

from aeflow_monai.data.channel_order import require_order
from aeflow_monai.data.dicom.paths import split_name
from aeflow_monai.data.dicom.reading import is_dicom_source, read_dicom_image
from aeflow_monai.data.itk_headers import check_itk_header, is_itk_volume
from aeflow_monai.data.masks import read_mask
from aeflow_monai.data.nifti import is_nifti, read_nifti
from aeflow_monai.data.numbers import as_float32
from aeflow_monai.data.pictures import read_picture
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.files import user_path
from aeflow_monai.geometry import TOLERANCE_MM, any_picture, corner_distance
from aeflow_monai.printable import first_line

__all__ = ["N_FILES", "LoadCased"]

N_FILES = "n_files"  # metadata key: number of files that the channels of an image were read from


class LoadCased(MapTransform):  # type: ignore[misc]
    """Load the images of a case with the channel first, or raise an error that names the fault of the file.

    Does what MONAI's `LoadImaged` and `EnsureChannelFirstd` do, and refuses what they accept silently: truncated files,
    files that refer to another folder, files that are not images, and numbers that 32 bits cannot hold. 2D images are
    read as displayed, and affines are in mm. A mask becomes binary; see `read_mask`. Several files of one key
    (modalities) become channels if they lie on one grid, to 0.01 mm. Two entries of a datalist are applied and removed:
    "problem", a text with the known fault of the case, which is raised, and "sha256", a dictionary from path to
    hexadecimal digest, which the files must match.

    Tensors, with the channel first, pass unchanged.

    Args:
        keys: keys of paths, or of lists of paths.
        allow_missing_keys: skip keys that are absent, such as a mask.
        mask_keys: the keys that are masks.
        channel_names: names that tell the files of an image apart, in the order of its channels. Files with these
            names in another order are refused.

    Example:
        >>> import tempfile
        >>> import nibabel as nib
        >>> file = Path(tempfile.mkdtemp()) / "scan.nii.gz"
        >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6), dtype=np.float32), np.eye(4)), file)
        >>> tuple(LoadCased("image")({"image": str(file)})["image"].shape)
        (1, 4, 5, 6)
    """

    def __init__(
        self,
        keys: KeysCollection,
        allow_missing_keys: bool = False,
        mask_keys: Sequence[str] = ("lesion",),
        channel_names: Sequence[str] = (),
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_keys = tuple(mask_keys)
        self.channel_names = ensure_tuple(channel_names)
        # for formats without a reader of their own below; the last reader that accepts a file reads it
        with _without_nvimagecodec():
            self.load = LoadImage(reader=("ITKReader", "NibabelReader"), image_only=True)
        self.channel_first = EnsureChannelFirst()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load one case.

        Raises:
            ValueError: the case has a known problem; a file has changed, cannot be read, is not an image, is not a
                valid mask, or has a singular affine; files of one key lie on different grids, or are in another order
                than those of the training.
            FileNotFoundError: a file does not exist.
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
            if key in self.mask_keys and len(files) > 1:
                raise ValueError(f"Expected one mask for a case; got {', '.join(files)}. Name the one of the lesion.")
            require_order(files, self.channel_names)
            d[key] = _as_channels(files, [self._read(file, key in self.mask_keys) for file in files])
        return d

    def _read(self, file: str, is_mask: bool) -> MetaTensor:
        path = user_path(file)
        if not split_name(path)[0].exists():
            raise FileNotFoundError(
                f"Expected an image at {file}; there is no such file. Put it there, or correct the list."
            )
        if not (path.is_file() or path.is_dir() or split_name(path)[1]):
            raise ValueError(f"Expected an image in {path}; got neither a file nor a folder. Correct the list.")
        if path.is_file() and path.stat().st_size == 0:
            raise ValueError(f"Expected an image in {path}; got an empty file. Copy or export the file again.")
        image = read_mask(path, self._read_image) if is_mask else self._read_image(path)
        image.meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = 0  # keeps a second EnsureChannelFirst from adding a dimension
        return image

    def _read_image(self, path: Path) -> MetaTensor:
        if is_dicom_source(path):
            return read_dicom_image(path)
        if path.is_file():
            if any_picture(path.name):
                return read_picture(path)
            if is_nifti(path):
                return read_nifti(path)
            if is_itk_volume(path):
                return _read_itk_volume(path)
        try:
            return self.channel_first(self.load(path))
        except Exception as error:
            raise ValueError(_unreadable(path, error)) from error


@contextmanager
def _without_nvimagecodec() -> Iterator[None]:
    """Keep MONAI, which constructs all its readers, from warning about the GPU reader, which is not used here."""
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    logger.addFilter(_none)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
            yield
    finally:
        logger.removeFilter(_none)


def _none(_: logging.LogRecord) -> bool:
    return False


def _read_itk_volume(path: Path) -> MetaTensor:
    mm = check_itk_header(path)
    reader = ITKReader()
    try:
        values, meta = reader.get_data(reader.read(str(path)))
    except Exception as error:
        raise ValueError(_unreadable(path, error)) from error
    for key in (MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE):
        meta[key] = np.diag([*[mm] * (len(meta[key]) - 1), 1.0]) @ meta[key]
    meta["filename_or_obj"] = str(path)
    return EnsureChannelFirst()(MetaTensor.ensure_torch_and_prune_meta(as_float32(values, str(path)), meta))


def _check_unchanged(file: str, digest: str) -> None:
    path = user_path(file)
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


def _unreadable(path: Path, error: Exception) -> str:
    # MONAI's message consists of the tracebacks of a dozen readers
    unknown = "cannot find a suitable reader" in str(error)
    reason = "" if unknown else f" ({_said(error)})"
    with path.open("rb") as stream:
        head = stream.read(132)
    if unknown:
        fault = f"content that no reader knows, beginning with {head[:12]!r}"
        remedy = "Is it an image, and whole? Correct its extension, or export it again."
    else:
        fault = f"a file that cannot be read{reason}"
        remedy = "It is probably truncated or damaged: copy or export it again."
    return f"Expected an image in {path}; got {fault}. {remedy}"


def _said(error: Exception) -> str:
    """Return the message of an error, without the location in ITK's code."""
    said = re.sub(r"\(0x[0-9a-f]+\)|^\S+\.[ch]xx:\d+:\s*$|ITK ERROR: ", "", str(error), flags=re.MULTILINE)
    return first_line(said) or type(error).__name__


def _as_channels(files: Sequence[str], images: Sequence[MetaTensor]) -> MetaTensor:
    """Concatenate images (C_i, ...) on one grid to (sum of C_i, ...), with the metadata of the first."""
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
    return MetaTensor(torch.cat([image.as_tensor() for image in images]), meta={**first.meta, N_FILES: len(files)})

"""Read a DICOM image into a tensor with a RAS affine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys

from aeflow_monai.data.dicom.frames import frames_of, has_place
from aeflow_monai.data.dicom.grid import grid_of
from aeflow_monai.data.dicom.headers import DicomFile, quiet
from aeflow_monai.data.dicom.image import Image, no_single_image
from aeflow_monai.data.dicom.mosaic import is_mosaic, read_mosaic
from aeflow_monai.data.dicom.paths import is_dicom_file, split_name
from aeflow_monai.data.dicom.pixels import colours, intensities
from aeflow_monai.data.dicom.series import contents_of, image_in_file

__all__ = ["is_dicom_source", "read_dicom_image"]


def is_dicom_source(path: Path) -> bool:
    """Whether a path is read as DICOM: a folder, a series in a folder such as `export#3`, or a DICOM file."""
    return path.is_dir() or bool(split_name(path)[1]) or is_dicom_file(path)


def read_dicom_image(path: Path) -> MetaTensor:
    """Read one DICOM image.

    Args:
        path: a folder with the files of one image, one series in a folder, such as `export#3`, or a file.

    Returns:
        A volume (1, X, Y, Z) with its affine in RAS; or a 2D image without a position in space, (1, X, Y), or
        (3, X, Y) in colour. Its metadata hold no patient data.

    Raises:
        ValueError: the path does not hold exactly one complete image; the message names the file and the cause.
    """
    image = _chosen(path)
    if image.problem:
        raise ValueError(image.problem)
    first = image.files[0]
    if is_mosaic(first):
        values, affine = read_mosaic(first)
    elif has_place(first):
        grid = grid_of([frame for file in image.files for frame in frames_of(file)], image.others)
        with quiet():
            values, affine = intensities(grid.frames), grid.affine
    elif first.in_colour:
        return _tensor(colours(first).transpose(2, 1, 0), _picture_affine(first), path)
    else:
        return _tensor(intensities(frames_of(first))[None, ..., 0], _picture_affine(first), path)
    return _tensor(values[None], affine, path)


def _chosen(path: Path) -> Image:
    folder, name = split_name(path)
    if not folder.is_dir():
        return image_in_file(path)
    contents = contents_of(folder)
    fitting = [image for image in contents.images if not name or (image.is_stack and image.name == name)]
    if len(fitting) != 1:
        raise ValueError(no_single_image(path, contents))
    return fitting[0]


def _picture_affine(file: DicomFile) -> npt.NDArray[np.float64]:
    """Return an affine with columns to the left and rows to posterior, as in other 2D formats, in mm."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        if (spacing := file.numbers(keyword, 2)) and min(spacing) > 0:
            return np.diag([-spacing[1], -spacing[0], 1.0, 1.0])
    ratio = file.numbers("PixelAspectRatio", 2)
    return np.diag([-1.0, -ratio[0] / ratio[1] if ratio and min(ratio) > 0 else -1.0, 1.0, 1.0])


def _tensor(values: npt.NDArray[np.float32], affine: npt.NDArray[np.float64], path: Path) -> MetaTensor:
    meta = {
        MetaKeys.AFFINE: affine,
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(values.shape[1:]),
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
        MetaKeys.SPACE: SpaceKeys.RAS,
        ImageMetaKey.FILENAME_OR_OBJ: str(path),
    }
    return MetaTensor.ensure_torch_and_prune_meta(values, meta)

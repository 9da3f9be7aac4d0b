"""Siemens mosaics: all slices of a volume side by side in one image."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from aeflow_monai.data.dicom.frames import frames_of
from aeflow_monai.data.dicom.headers import DicomFile, quiet, read_dataset
from aeflow_monai.data.dicom.pixels import intensities

__all__ = ["is_mosaic", "read_mosaic"]


def is_mosaic(file: DicomFile) -> bool:
    """Whether an image is a mosaic, by its ImageType."""
    return "MOSAIC" in file.image_type


def read_mosaic(file: DicomFile) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Cut a mosaic into its slices.

    Args:
        file: the mosaic.

    Returns:
        The values, (columns, rows, slices), and the affine from column, row and slice to mm, RAS, (4, 4).

    Raises:
        ValueError: the header lacks the geometry of the slices, or the file cannot be read.
    """
    data = read_dataset(file.path)
    try:
        shape, affine = _geometry(data)
    except Exception:  # nibabel raises various errors if a private element is missing
        raise ValueError(
            f"Expected a volume in {file.path}; got a mosaic of slices whose private elements, which say how they lie, "
            "are missing. Export it with them, or convert it to NIfTI with dcm2niix."
        ) from None
    rows, columns, count = shape
    tiles = intensities(frames_of(file))[..., 0].T
    across = tiles.shape[1] // columns
    if rows * -(-count // across) > tiles.shape[0] or across * columns != tiles.shape[1]:
        raise ValueError(
            f"Expected a mosaic of {count} slices of {rows} x {columns} pixels in {file.path}; got {tiles.shape[0]} x "
            f"{tiles.shape[1]} pixels, where they do not fit. Export it again."
        )
    volume = tiles.reshape(-1, rows, across, columns).transpose(0, 2, 1, 3).reshape(-1, rows, columns)
    return volume[:count].transpose(2, 1, 0), affine


def _geometry(data: Any) -> tuple[tuple[int, int, int], npt.NDArray[np.float64]]:
    """Return rows, columns, number of slices and the affine, from nibabel, which parses Siemens' private header."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom.dicomwrappers import MosaicWrapper

        wrapped = MosaicWrapper(data)
        rows, columns, count = (int(n) for n in wrapped.image_shape)
        row, column = (np.array(data.ImageOrientationPatient[i : i + 3], float) for i in (0, 3))
        sizes = [float(size) for size in wrapped.voxel_sizes]
        lps = np.eye(4)
        lps[:3, :3] = np.stack([row * sizes[1], column * sizes[0], np.ravel(wrapped.slice_normal) * sizes[2]], axis=1)
        lps[:3, 3] = np.ravel(wrapped.image_position)
    if not np.isfinite(lps).all():
        raise KeyError
    return (rows, columns, count), np.diag([-1.0, -1, 1, 1]) @ lps

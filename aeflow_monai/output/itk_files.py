"""NRRD and MetaImage files of maps and masks, written by ITK."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import ITKWriter

from aeflow_monai.files import replacing, unfinished_path
from aeflow_monai.marks import MARK

__all__ = ["check_directions", "write_itk"]

Array = npt.NDArray[Any]


def write_itk(path: Path, array: Array, dtype: type[np.generic], affine: Array) -> None:
    """Write an array (C, X, Y) or (C, X, Y, Z) with an affine; for `.mhd` both files keep their names."""
    # Not by the setters of MONAI's writer, which squeeze (X, Y, 1) to (X, Y).
    writer = _MarkedWriter(output_dtype=dtype)
    writer.affine = affine
    writer.channel_dim = None if len(array) == 1 else -1
    writer.data_obj = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    if path.suffix == ".mhd":  # the header names its data file, so both need their final names
        pair = unfinished_path(path.with_name("pair"))
        pair.mkdir(parents=True)
        try:
            writer.write(pair / path.name)
            for part in sorted(pair.iterdir(), key=lambda part: part.suffix == ".mhd"):  # the header last
                part.replace(path.with_name(part.name))
        finally:
            shutil.rmtree(pair, ignore_errors=True)
        return
    with replacing(path) as unfinished:
        writer.write(unfinished)


def check_directions(affine: Array, ndim: int, case: str, extension: str) -> None:
    """Raise an error if axes are not orthogonal, or a 2D image is not in the x-y plane."""
    axes = affine[:-1, :ndim]
    directions = (axes / np.linalg.norm(axes, axis=0))[:ndim]
    if not np.allclose(directions.T @ directions, np.eye(ndim), atol=1e-3):
        raise ValueError(
            f"the affine of case '{case}' is sheared or oblique to its plane, which {extension} cannot hold: "
            f"directions {directions.round(3).tolist()} are not orthonormal; use the extension .nii.gz."
        )


class _MarkedWriter(ITKWriter):  # type: ignore[misc]
    """MONAI's writer, which adds the mark of this package to the header."""

    @classmethod
    def create_backend_obj(cls, *args: Any, **kwargs: Any) -> Any:
        image = super().create_backend_obj(*args, **kwargs)
        fields = image.GetMetaDataDictionary()
        fields[MARK] = "output"
        image.SetMetaDataDictionary(fields)
        return image

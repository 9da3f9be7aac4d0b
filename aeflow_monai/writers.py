"""Maps, masks and tables on disk."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import ITKWriter, MetaTensor
from monai.data.utils import orientation_ras_lps, to_affine_nd
from monai.transforms import MapTransform, Transform
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys

try:
    from isal import igzip as gzip  # as small as zlib's level 1 in a fraction of the time, see benchmarks/writing.py
except ImportError:  # no wheel for this machine
    import gzip

__all__ = ["ScoreTable", "WriteMapsd", "write_json"]

Array = npt.NDArray[Any]

# Axis of a volume (C, H, W, D) in orientation PLS along which the slices of this name are stacked.
SLICE_AXES = {"axial": 2, "coronal": 0, "sagittal": 1}
DISCLAIMER = "Research use only. Not a medical device."
NIFTI = (".nii.gz", ".nii")
EXTENSIONS = (*NIFTI, ".nrrd", ".mha", ".mhd")
# What places a NIfTI file in the world, with its units.
QFORM = ("pixdim", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
SFORM = ("sform_code", "srow_x", "srow_y", "srow_z")
GEOMETRY = (*QFORM, *SFORM, "xyzt_units")
_WRITERS = 2  # files of a case that are compressed at the same time
# Bytes that are compressed in one go: nibabel writes slice by slice, and after each a thread has to wait for its turn.
_BLOCK = 2**23


class WriteMapsd(MapTransform):  # type: ignore[misc]
    """Writes the maps and masks of one case on the grid of its input.

    A file `<output_dir>/<case>_<key><extension>` is written for each key. Its shape and affine are those of
    the input file, including a trailing singleton dimension, so that both overlay in any viewer. The data has
    to be back on that grid already, see `monai.transforms.Invertd`; nothing is resampled here.

    From NIfTI to NIfTI, both transforms (sform and qform) with their codes, the voxel sizes and the units are
    copied from the header of the input, which is the file that the data's `filename_or_obj` names, of several
    modalities the first. All else goes by the affine, in NIfTI as both transforms with code 1.

    Booleans, `uint8`, and whatever stands under the key `mask` are written as `uint8`, everything else as
    `float32`.

    Args:
        keys: Keys of the data to write; may be empty, then nothing is written.
        output_dir: Folder to write to, made if it is missing.
        extension: `.nii.gz`, `.nii`, `.nrrd`, `.mha` or `.mhd`. The last three are ITK's, whose
            directions are orthonormal: no sheared affine, and no 2D image outside the world's x-y plane.

    Raises:
        ValueError: If the extension is unknown; when called, if the case is no file name, if the data is not
            on the grid of its input, if a mask holds fractions, or if the format cannot hold the affine.
        TypeError: When called, if the data is not a `MetaTensor`, so that its place in the world is unknown.

    Example:
        >>> import tempfile
        >>> import nibabel as nib
        >>> affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))
        >>> anomaly_map = MetaTensor(torch.rand(1, 8, 8, 4), affine=affine)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = WriteMapsd(["anomaly_map"], folder)({"case": "sub-01", "anomaly_map": anomaly_map})
        ...     nib.load(f"{folder}/sub-01_anomaly_map.nii.gz").shape
        (8, 8, 4)
    """

    def __init__(self, keys: Sequence[Hashable] | Hashable, output_dir: str | Path, extension: str = ".nii.gz") -> None:
        if keys or isinstance(keys, str):
            super().__init__(keys)
        else:  # MapTransform refuses to have no keys
            Transform.__init__(self)
            self.keys, self.allow_missing_keys = (), False
        if extension not in EXTENSIONS:
            raise ValueError(f"extension has to be one of {', '.join(EXTENSIONS)}, got {extension!r}.")
        self.output_dir = Path(output_dir)
        self.extension = extension

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes the files of one case.

        Args:
            data: The decollated dictionary: `case`, and for each key a `MetaTensor` of shape (C, X, Y) or
                (C, X, Y, Z).

        Returns:
            The dictionary, unchanged.
        """
        d = dict(data)
        if self.keys:
            case = file_name(d)
            self.output_dir.mkdir(parents=True, exist_ok=True)
            # compression lets go of Python's lock, so that two cores work at it
            with ThreadPoolExecutor(_WRITERS) as pool:
                for written in [pool.submit(self._write, d[key], key, case) for key in self.key_iterator(d)]:
                    written.result()
        return d

    def _write(self, value: Any, key: Hashable, case: str) -> None:
        if not isinstance(value, MetaTensor):
            raise TypeError(
                f"'{key}' of case '{case}' has to be a MetaTensor, got {type(value).__name__}, whose "
                "affine is unknown: apply Invertd to it first."
            )
        if value.ndim not in (3, 4):
            raise ValueError(
                f"'{key}' of case '{case}' has to be of shape (C, X, Y) or (C, X, Y, Z), got "
                f"{tuple(value.shape)}: remove the batch dimension with Decollated."
            )
        array = to_numpy(value)
        dtype: type[np.generic] = np.float32
        whole = value.dtype in (torch.bool, torch.uint8)
        if key == "mask" or whole:
            dtype = np.uint8
            if not whole and not ((array >= 0) & (array <= 255) & (array == np.floor(array))).all():
                raise ValueError(
                    f"'{key}' of case '{case}' has to hold whole numbers from 0 to 255: invert it with "
                    "nearest_interp=True, or threshold the inverted map."
                )
        affine = _input_affine(value, key, case)
        path = self.output_dir / f"{case}_{key}{self.extension}"
        if self.extension in NIFTI:
            write_nifti(path, array.astype(dtype, copy=False), affine, source_header(value.meta))
            return
        _check_directions(affine, value.ndim - 1, case, self.extension)
        # Not by the setters of MONAI's writer, which squeeze (X, Y, 1) to (X, Y).
        writer = ITKWriter(output_dtype=dtype)
        writer.affine = affine
        writer.channel_dim = None if len(array) == 1 else -1
        writer.data_obj = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
        writer.write(path)


class ScoreTable:
    """A CSV file that grows by a row per case, so that a failure loses nothing that was computed before.

    Args:
        path: The file, replaced if it exists; missing folders are made.
        columns: Names of the columns, in their order.

    Raises:
        ValueError: If there are no columns or one is named twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = ScoreTable(f"{folder}/scores.csv", ["case", "anomaly_score"])
        ...     table.append({"case": "sub-01", "anomaly_score": 0.1 + 0.2})
        ...     print(table.path.read_text())
        case,anomaly_score
        sub-01,0.30000000000000004
        <BLANKLINE>
    """

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        self.path = Path(path)
        self.columns = tuple(columns)
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns have to be one or more different names, got {list(self.columns)}.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write_line("w", self.columns)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row and closes the file.

        Args:
            row: A value for each column; numbers may be scalars of Python, NumPy or torch, and keep all their
                digits.

        Raises:
            ValueError: If a column is missing or unknown.
        """
        missing = [column for column in self.columns if column not in row]
        unknown = [column for column in row if column not in self.columns]
        if missing or unknown:
            raise ValueError(
                f"a row of {self.path.name} has the columns {list(self.columns)}: missing {missing}, unknown {unknown}."
            )
        self._write_line("a", [row[column] for column in self.columns])

    def _write_line(self, mode: str, values: Sequence[Any]) -> None:
        cells = (value.item() if hasattr(value, "item") else value for value in values)
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(
                repr(cell) if isinstance(cell, float) else cell for cell in cells
            )


def write_json(path: str | Path, content: Any) -> None:
    """Writes a JSON file in one step, so that a reader never meets half of one.

    Args:
        path: The file, replaced if it exists; missing folders are made.
        content: What JSON can hold; keys keep their order.

    Raises:
        ValueError: If a number is NaN or infinite, which JSON has no word for.
        TypeError: If JSON cannot hold the content.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(f"{folder}/report.json", {"n": 3, "auroc": 0.5})
        ...     print(Path(folder, "report.json").read_text(), end="")
        {
          "n": 3,
          "auroc": 0.5
        }
    """
    path = Path(path)
    text = json.dumps(content, indent=2, sort_keys=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Same folder, since a file is replaced in one step only within its file system.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def file_name(data: Mapping[Hashable, Any]) -> str:
    """The case, which becomes a part of file names and must not lead out of the output folder."""
    case = data["case"]
    if not isinstance(case, str) or not case or ".." in case or any(sign in case for sign in "/\\\0"):
        raise ValueError(f"case has to be a file name without path separators or '..', got {case!r}.")
    return case


def read_threshold(threshold: float | torch.Tensor | Callable[[], float]) -> float:
    """The threshold as it is now: a number, or what a tensor or a function of a loaded checkpoint tells."""
    number = float(threshold() if callable(threshold) else threshold)
    if not np.isfinite(number):
        raise ValueError(f"threshold has to be finite, got {number}: load a calibrated checkpoint first.")
    return number


def to_numpy(value: Any) -> Array:
    tensor = torch.as_tensor(value)
    if isinstance(tensor, MetaTensor):
        tensor = tensor.as_tensor()
    array: Array = tensor.detach().cpu().to(torch.float32).numpy()
    return array


def ras_affine(affine: Any, meta: Mapping[str, Any]) -> Array:
    """Voxel indices to world, mm, in RAS whatever the reader was told."""
    array: Array = np.asarray(torch.as_tensor(affine).detach().cpu(), dtype=np.float64)
    if meta.get(MetaKeys.SPACE) == SpaceKeys.LPS:
        array = orientation_ras_lps(array)
    return array


def slice_positions(affine: Array, shape: Sequence[int], axis: int, world: int) -> Array:
    """Coordinates of the slices' centres along a world axis; the affine is RAS, (4, 4), shape and axis are spatial."""
    centre = sum(affine[world, k] * (n - 1) / 2 for k, n in enumerate(shape) if k != axis)
    positions: Array = affine[world, 3] + centre + affine[world, axis] * np.arange(shape[axis])
    return positions


def format_position(letter: str, position: float) -> str:
    """A world coordinate with its sign, such as S +12.5 mm."""
    return f"{letter} {round(position, 1) + 0.0:+.1f} mm".replace("-", "\N{MINUS SIGN}")


def _input_affine(value: Any, key: Hashable, case: str) -> Array:
    """The affine of the file that the case was loaded from; raises if the data is not on that file's grid."""
    spatial, meta = tuple(value.shape[1:]), value.meta
    affine = original = ras_affine(value.affine, meta)
    if meta.get(MetaKeys.ORIGINAL_AFFINE) is not None:
        # Written in place of the data's own, which went through every inverse and back.
        original = ras_affine(meta[MetaKeys.ORIGINAL_AFFINE], meta)
    expected = tuple(int(n) for n in meta.get(MetaKeys.SPATIAL_SHAPE, spatial))[: len(spatial)]
    near = np.allclose(to_affine_nd(len(spatial), affine), to_affine_nd(len(spatial), original), atol=1e-3)
    if spatial != expected or not near:
        raise ValueError(
            f"'{key}' of case '{case}' has to be on the grid of its input, shape {expected} and affine "
            f"{original.round(3).tolist()}, got shape {spatial} and affine {affine.round(3).tolist()}: "
            "apply Invertd first."
        )
    return original


def source_header(meta: Mapping[str, Any]) -> nib.Nifti1Header | None:
    """Header of the NIfTI file that the case was loaded from, None if it is another format or gone."""
    path = Path(str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")))
    return nib.load(path).header if path.name.lower().endswith(NIFTI) and path.is_file() else None


def write_nifti(path: Path, array: Array, affine: Array, source: nib.Nifti1Header | None) -> None:
    """Writes an array (C, X, Y) or (C, X, Y, Z) in the geometry of the source, or of the affine if there is none."""
    if len(array) == 1:
        array = array[0]
        if source is not None and _untailed(source.get_data_shape()) == _untailed(array.shape):
            array = array.reshape(source.get_data_shape())  # (X, Y, Z) to (X, Y, Z, 1), where the source is so
    else:
        array = np.moveaxis(array, 0, -1)
        if array.ndim == 3:
            array = array[:, :, None]  # (X, Y, 1, C): NIfTI's third axis is spatial
    if source is None:
        image = nib.Nifti1Image(array, to_affine_nd(3, affine))
        image.set_sform(image.affine, code=1)
        image.set_qform(image.affine, code=1)
    else:
        # Not the whole header: its display range, intent and scaling belong to the source's values.
        image_class = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
        header = image_class.header_class()
        header.set_data_dtype(array.dtype)
        for field in GEOMETRY:
            header[field] = source[field]
        image = image_class(array, None, header)
    with path.open("wb") as file:
        if path.suffix == ".gz":
            # Neither name nor time, so that the same case is the same file.
            packed = gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0)
            with packed, io.BufferedWriter(packed, _BLOCK) as stream:
                image.to_stream(stream)
        else:
            image.to_stream(file)


def _untailed(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape without trailing singleton dimensions."""
    return tuple(shape[: max((k + 1 for k, n in enumerate(shape) if n > 1), default=0)])


def _check_directions(affine: Array, ndim: int, case: str, extension: str) -> None:
    """Raises if the axes are not at right angles, or a 2D image not in the x-y plane."""
    axes = affine[:-1, :ndim]
    directions = (axes / np.linalg.norm(axes, axis=0))[:ndim]
    if not np.allclose(directions.T @ directions, np.eye(ndim), atol=1e-3):
        raise ValueError(
            f"the affine of case '{case}' is sheared or oblique to its plane, which {extension} cannot hold: "
            f"directions {directions.round(3).tolist()} are not orthonormal; use the extension .nii.gz."
        )

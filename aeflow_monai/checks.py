"""Loading a case, and what is looked at before anything is computed from it: errors name file, fault and remedy."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import EnsureChannelFirst, LoadImage, MapTransform
from monai.utils import ImageMetaKey, MetaKeys, ensure_tuple
from PIL import Image
from torch import Tensor

try:
    from isal import igzip
except ImportError:  # no wheel for this machine
    igzip = None

__all__ = ["CheckImaged", "LoadCased"]

# Two grids are the same if their corners are no further apart than this, in mm; headers hold single precision.
_TOLERANCE_MM = 1e-2
# Formats without a place in the world.
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# World axes (0 for x, to the right) that the slices of each plane extend along.
_IN_PLANE = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
_DIRECTIONS = ("left to right", "posterior to anterior", "inferior to superior")


class LoadCased(MapTransform):  # type: ignore[misc]
    """Load the images of a case with the channel first, or say what is wrong with the file.

    Does what MONAI's `LoadImaged` and `EnsureChannelFirstd` do, and what they leave to a reader's obscure error or let
    pass in silence: a compressed file is read to its end, which shows whether it is whole; several files of one key
    (modalities) become channels if they lie on one grid, to 0.01 mm. Two entries of a datalist are obeyed and taken
    out: "problem", a text that says what is known to be wrong with this case, and "sha256", a dictionary from path to
    hexadecimal digest, which the files have to have still.

    Args:
        keys: of paths, or lists of paths.
        reader: names of MONAI's readers; the last that can read a file does.
        allow_missing_keys: pass over keys that are not there, such as a mask.

    Example:
        >>> import tempfile
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
            files = [str(file) for file in ensure_tuple(d[key])]
            d[key] = _as_channels(files, [self._read(file) for file in files])
        return d

    def _read(self, file: str) -> MetaTensor:
        path = Path(file).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f"Expected an image at {file}; there is no such file. Put it there, or correct the list."
            )
        _check_whole(path)
        _check_nifti_affine(path)
        try:
            image = self.channel_first(self.load(file))
        except Exception as error:
            raise ValueError(_unreadable(path, error)) from error
        image.meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = 0  # so that a second EnsureChannelFirst adds no dimension
        return image


class CheckImaged(MapTransform):  # type: ignore[misc]
    """Refuse images that no score should be computed from, and masks that do not belong to their image.

    Has to stand behind `LoadCased`, before anything changes the grid or the intensities. Nothing is changed. An image
    has to be a 2D image or a volume with finite voxels that are not all the same (in a volume: in no channel), an
    affine that can be inverted, and more than one row and column in the planes that it is sliced along. A mask has to
    have the shape of its image and, unless one of them is a picture without a place in the world, its affine: corners
    within 0.01 mm.

    Args:
        keys: of images (C, H, W) or (C, X, Y, Z); the mask belongs to the first.
        mask_key: of the mask; cases without one, or where it is not loaded, pass.
        axes: planes that volumes are sliced along, of "axial", "coronal", "sagittal". A volume of one axial slice is
            sliced along the axial plane, whatever stands here.
        allow_missing_keys: pass over keys that are not there.

    Raises:
        ValueError: an unknown plane.

    Example:
        >>> image = torch.zeros(1, 8, 8)
        >>> CheckImaged()({"image": image})
        Traceback (most recent call last):
        ValueError: Expected an image with a content in 'image'; got the same value, 0, in all voxels. ...
    """

    def __init__(
        self,
        keys: KeysCollection = ("image",),
        mask_key: str = "mask",
        axes: Sequence[str] = ("axial",),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if unknown := [axis for axis in axes if axis not in _IN_PLANE]:
            raise ValueError(f"Unknown plane {unknown[0]!r} in axes: choose of {list(_IN_PLANE)}.")
        self.mask_key = mask_key
        self.axes = tuple(axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Look at one case.

        Raises:
            ValueError: an image or a mask is not as above.
        """
        for key in self.key_iterator(data):
            image, name = data[key], _name(data[key], key)
            if image.ndim not in (3, 4):
                raise ValueError(
                    f"Expected a 2D image or a volume in {name}; got {image.ndim - 1} dimensions, shape "
                    f"{tuple(image.shape[1:])}. Split a series into volumes first."
                )
            _check_values(image, name)
            if isinstance(image, MetaTensor):
                _check_affine(image.affine.cpu().numpy(), name, image.ndim - 1)
            _check_planes(image, name, self.axes)
        first, mask = data.get(self.keys[0]), data.get(self.mask_key)
        if isinstance(first, Tensor) and isinstance(mask, Tensor):
            _check_mask(mask, _name(mask, self.mask_key), first, _name(first, self.keys[0]))
        return dict(data)


def _check_unchanged(file: str, digest: str) -> None:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the file {file}, which the prepared data set lists; there is no such file. Put it back, or "
            "prepare the data set again."
        )
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            sha256.update(block)
    if sha256.hexdigest() != digest.lower():
        raise ValueError(
            f"The file {file} changed since the data set was prepared: expected SHA-256 {digest[:12]}..., got "
            f"{sha256.hexdigest()[:12]}.... Restore the file, or prepare the data set again."
        )


def _check_whole(path: Path) -> None:
    """Read a compressed file to its end: readers stop at the last voxel, or fill the missing ones in silence."""
    suffix = path.suffix.lower()
    fault, remedy = "", "Copy or export the file again."
    if path.is_file() and path.stat().st_size == 0:
        fault = "an empty file"
    elif suffix == ".gz":
        if igzip is not None:
            # In a third of the time; what it objects to, zlib explains below.
            with contextlib.suppress(Exception):
                _read_to_end(igzip.open, path)
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
    elif suffix in _PICTURES:
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
    _check_affine(image.affine, str(path), min(3, len(image.shape)))


def _check_affine(affine: npt.NDArray[Any], name: str, n_axes: int) -> None:
    axes = np.asarray(affine, dtype=np.float64)[:-1, :n_axes]
    if np.isfinite(affine).all():
        lengths = np.linalg.norm(axes, axis=0)
        if (lengths > 0).all() and np.linalg.matrix_rank(axes / lengths, tol=1e-4) == axes.shape[1]:
            return
    raise ValueError(
        f"Expected an affine that can be inverted in {name}; got {np.round(affine, 4).tolist()}, in which voxels have "
        "no size, or axes fall together. Correct the header (sform and qform of NIfTI), or export the image again."
    )


def _unreadable(path: Path, error: Exception) -> str:
    # that message is the tracebacks of a dozen readers
    unknown = "cannot find a suitable reader" in str(error)
    reason = "" if unknown else f" ({_first_line(error)})"
    if path.is_dir():
        return (
            f"Expected one DICOM series in the folder {path}; got something that no reader can read{reason}. "
            "Convert the series to NIfTI first, for example with dcm2niix."
        )
    with path.open("rb") as stream:
        head = stream.read(132)
    if head[128:] == b"DICM":
        fault = f"a DICOM file that cannot be decoded{reason}, perhaps for the way its pixels are compressed"
        remedy = "Decompress it, for example with gdcmconv --raw, or convert it to NIfTI with dcm2niix."
    elif unknown:
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
        if (distance := _corner_distance(first, image)) > _TOLERANCE_MM and not _any_picture(files[0], file):
            raise ValueError(
                f"Expected modalities on one grid, that of {files[0]}; the corners of {file} lie up to "
                f"{distance:.3g} mm away from it. Register them and resample them to one grid first."
            )
    return MetaTensor(torch.cat([image.as_tensor() for image in images]), meta=first.meta)


def _check_values(image: Tensor, name: str) -> None:
    values = torch.as_tensor(image).as_subclass(Tensor)
    low, high = values.aminmax()  # in one pass; NaN and infinite values show in it
    if not (torch.isfinite(low) and torch.isfinite(high)):
        wrong = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"Expected finite voxels in {name}; got {wrong} of {values.numel()} that are NaN or infinite. Replace "
            "them in the file, by the value of the background for example."
        )
    if low == high:
        raise ValueError(
            f"Expected an image with a content in {name}; got the same value, {float(low):g}, in all voxels. Export it "
            "again, or take the case out."
        )
    if len(values) > 1 and values.ndim == 4 and values.shape[-1] > 1:  # a picture may lack a colour
        for number, channel in enumerate(values, start=1):
            low, high = channel.aminmax()
            if low == high:
                raise ValueError(
                    f"Expected a content in each of the {len(values)} channels of {name}; got the same value, "
                    f"{float(low):g}, in all voxels of channel {number}. Export this modality again, or take the case "
                    "out."
                )


def _check_planes(image: Tensor, name: str, axes: Sequence[str]) -> None:
    """Slices have to be areas, not lines."""
    shape = tuple(image.shape[1:])
    if len(shape) == 2:
        if min(shape) < 2:
            raise ValueError(
                f"Expected two or more rows and columns in {name}; got the shape {shape}. Take the case out."
            )
        return
    extent = list(shape)  # along the world's x, y and z
    if isinstance(image, MetaTensor):
        affine = to_affine_nd(3, image.affine.cpu().double().numpy())
        for size, (world, _) in zip(shape, nib.orientations.io_orientation(affine), strict=True):
            extent[int(world)] = size
    for plane in ("axial",) if extent[2] == 1 else axes:
        thin = [world for world in _IN_PLANE[plane] if extent[world] < 2]
        if thin:
            fitting = [other for other, worlds in _IN_PLANE.items() if min(extent[world] for world in worlds) > 1]
            remedy = f"Set axes to {fitting}, or take the case out." if fitting else "Take the case out."
            raise ValueError(
                f"Expected {plane} slices of two or more rows and columns in {name}; got one voxel from "
                f"{_DIRECTIONS[thin[0]]} (shape {shape}). {remedy}"
            )


def _check_mask(mask: Tensor, mask_name: str, image: Tensor, image_name: str) -> None:
    if mask.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"Expected a mask of its image's shape, {tuple(image.shape[1:])} as {image_name}; got "
            f"{tuple(mask.shape[1:])} in {mask_name}. Resample the mask to the image, with nearest neighbours."
        )
    if not bool(torch.isfinite(torch.as_tensor(mask).as_subclass(Tensor)).all()):
        raise ValueError(f"Expected finite values in {mask_name}; got NaN or infinite ones. Correct the mask.")
    if not (isinstance(mask, MetaTensor) and isinstance(image, MetaTensor)) or _any_picture(mask_name, image_name):
        return
    if (distance := _corner_distance(image, mask)) > _TOLERANCE_MM:
        raise ValueError(
            f"Expected a mask on the grid of {image_name}; the corners of {mask_name} lie up to {distance:.3g} mm "
            "away from it. Resample the mask to the image, or correct its affine."
        )


def _corner_distance(first: MetaTensor, second: MetaTensor) -> float:
    """Largest distance, in mm, between the places that two affines give the same corner."""
    corners = [(0, size - 1) for size in first.shape[1:]]
    ends = np.array([[*corner, *[0] * (3 - len(corner)), 1] for corner in itertools.product(*corners)], dtype=float)
    both = [to_affine_nd(3, image.affine.cpu().double().numpy()) for image in (first, second)]
    distance = np.linalg.norm(ends @ (both[0] - both[1]).T, axis=1).max()
    return float(distance) if np.isfinite(distance) else float("inf")


def _any_picture(*names: str) -> bool:
    return any(name.lower().endswith(_PICTURES) for name in names)


def _name(image: Any, key: Hashable) -> str:
    file = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(image, MetaTensor) else None
    return str(file or repr(key))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

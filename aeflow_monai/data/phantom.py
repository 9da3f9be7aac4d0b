"""The embedded data set: synthetic head volumes, normal or with known lesions, written as NIfTI or PNG."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from aeflow_monai.files import new_folder, write_json

__all__ = ["PhantomVolume", "make_volume", "write_phantom", "write_phantom_slices"]

Floats = NDArray[np.floating[Any]]

RECIPE = 2  # raise it when the same seed gives other voxels, so that folders of an older recipe are refused
SHAPE = (96, 112, 20)
MAX_LESIONS = 3
LESION_KINDS = ("bright", "dark", "ring", "speckled")
STORED_AXES = ("RAS", "RAS", "LPS", "LAS", "PSR", "SLA")
FAT, WHITE, DEEP_GREY, GREY, MARROW, CSF, BONE = 0.95, 0.68, 0.51, 0.46, 0.35, 0.18, 0.08


class PhantomVolume(NamedTuple):
    """One synthetic head scan.

    Args:
        image: signal, int16, of shape (X, Y, Z), in arbitrary units as a scanner stores them.
        mask: 1 inside lesions, 0 elsewhere, uint8, of shape (X, Y, Z).
        affine: voxel indices to RAS+ mm, float64, of shape (4, 4).
    """

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_volume(seed: int, n_lesions: int = 0) -> PhantomVolume:
    """Make one head scan; lesions are added to the scan which the same seed gives without them.

    Args:
        seed: whole number from 0; it fixes pose, anatomy, intensities, geometry and the lesions.
        n_lesions: lesions to add, 0 to 3, each 9 to 19 mm in radius.

    Returns:
        The volume. Its axes may be permuted or flipped, as its affine tells; in RAS order the shape is
        (96, 112, 20), with about 2 mm within a slice and 5 mm from slice to slice.

    Raises:
        ValueError: if `seed` or `n_lesions` is out of range.

    Example:
        >>> normal, abnormal = make_volume(7), make_volume(7, n_lesions=2)
        >>> sorted(normal.image.shape), int(normal.mask.sum())
        ([20, 96, 112], 0)
        >>> bool((normal.image == abnormal.image)[abnormal.mask == 0].mean() > 0.95)
        True
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or larger, but is {seed}.")
    if not 0 <= n_lesions <= MAX_LESIONS:
        raise ValueError(f"n_lesions must be 0 to {MAX_LESIONS}, but is {n_lesions}.")
    # One stream each: asking for lesions must not shift the anatomy or the noise.
    anatomy, lesions, scanner = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    spacing = scanner.uniform((1.95, 1.95, 4.8), (2.05, 2.1, 5.2))
    tissue, room = _head(anatomy, spacing)
    tissue, mask = _add_lesions(lesions, spacing, tissue, room, n_lesions)
    image = _scan(scanner, seed, spacing, tissue)

    affine = np.eye(4)
    affine[:3, :3] = _rotation(scanner.uniform(-12, 12, 3)) * spacing
    affine[:3, 3] = scanner.uniform(-10, 10, 3) - affine[:3, :3] @ (np.array(SHAPE) - 1) / 2
    stored = orientations.axcodes2ornt(STORED_AXES[scanner.integers(len(STORED_AXES))])
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), stored)
    image, mask = (np.ascontiguousarray(orientations.apply_orientation(a, turn)) for a in (image, mask))
    return PhantomVolume(image, mask, affine @ orientations.inv_ornt_aff(turn, SHAPE))


def _head(rng: np.random.Generator, spacing: Floats) -> tuple[Floats, Floats]:
    """Relative signal of a head, and how far (mm) each voxel is inside brain tissue; both (X, Y, Z), RAS."""
    grid, noise = _grid(spacing), partial(_noise, rng, spacing)
    pose = _rotation(rng.uniform(-6, 6, 3)) / rng.uniform(0.94, 1.05, 3)
    warp = np.stack([noise(24) for _ in range(3)])
    shift = rng.uniform((-4, -4, 14), (4, 4, 22))  # the slices reach from the base of the brain to its top
    u, v, w = np.tensordot(pose, grid, 1).astype(np.float32) + 2.2 * warp + _column(shift)
    side = np.abs(u)  # the head is nearly symmetric; warp and pose break it

    # Depth below the skin along the ray from the centre: an ellipsoid which is narrower in front.
    height = np.where(w > 0, 88, 130)
    radius = np.sqrt((u / (74 - 0.09 * v)) ** 2 + (v / 93) ** 2 + (w / height) ** 2) + 1e-3
    length = np.sqrt(u**2 + v**2 + w**2)
    below_skin = length / radius - length
    depth = below_skin - rng.uniform(12, 15)

    # Sulci are where a random field crosses zero; it varies slowly along the ray, so they run inwards.
    stretched = np.stack([u, v, w]) * (60 / (length + 1)) ** 0.55 / _column(spacing)
    fold = ndimage.map_coordinates(noise(4), stretched, order=1, mode="grid-wrap")
    to_sulcus = np.abs(fold) * 4
    reach = 17 + 4 * noise(10) - depth
    midline = np.abs(u + 1.2 * noise(8))
    outside_callosum = 12 * (np.sqrt((v / 48) ** 2 + ((w - 4) / 28) ** 2) - 1)

    size = rng.uniform(0.85, 1.25)
    lateral = _ellipsoid((side - 8 - 11 * ((v + 2) / 40) ** 2, v + 2, w - 14), (5 * size, 36, 12 * size))
    third = _ellipsoid((u, v + 6, w + 3), (2.5 * size, 13, 12))
    ventricle = np.maximum(lateral, third)
    nuclei = np.maximum(
        _ellipsoid((side - 25 - 0.25 * v, v - 6, w - 4), (7, 19, 16)),
        _ellipsoid((side - 11, v + 15, w - 3), (8, 12, 11)),
    )

    tissue = np.full(SHAPE, WHITE, np.float32)
    for value, inside, softness in (
        (DEEP_GREY, nuclei, 3.0),
        (GREY, 3.5 - depth, 3.0),
        (GREY, np.minimum(3.0 - to_sulcus, reach), 3.0),
        (GREY, np.minimum(4.0 - midline, outside_callosum), 3.0),
        (CSF, np.minimum(0.5 - to_sulcus, reach - 3), 3.0),
        (CSF, np.minimum(0.8 - midline, outside_callosum), 2.0),
        (CSF, ventricle, 2.5),
        (CSF, 0.5 - depth, 2.0),
        (BONE, -1.5 - depth, 2.0),
        (MARROW, 1.3 - np.abs(depth + 4.5), 2.0),
        (FAT, 6 + 0.8 * noise(12) - below_skin, 2.5),
    ):
        tissue += np.clip(0.5 + inside / softness, 0, 1) * (value - tissue)
    tissue *= 1 + 0.05 * noise(3) + 0.03 * noise(9)
    tissue *= np.clip(0.5 + below_skin / 2, 0, 1)
    blurred: Floats = ndimage.gaussian_filter(tissue, (0.45, 0.45, 0.3))
    return blurred, np.minimum(depth - 2, -ventricle).astype(np.float32)


def _add_lesions(
    rng: np.random.Generator, spacing: Floats, tissue: Floats, room: Floats, n_lesions: int
) -> tuple[Floats, NDArray[np.uint8]]:
    """The tissue with lesions blended in, and their mask; both (X, Y, Z)."""
    grid, noise = _grid(spacing), partial(_noise, rng, spacing)
    mask = np.zeros(SHAPE, np.uint8)
    free = room.copy()
    free[:, :, :2] = free[:, :, -2:] = -np.inf
    for kind in rng.permutation(LESION_KINDS)[:n_lesions]:
        radius = rng.uniform(10, 16)
        candidates = np.argwhere(free > min(0.6 * radius, 0.9 * float(free.max())))
        x, y, z = candidates[rng.integers(len(candidates))]
        offset = grid - _column(grid[:, x, y, z])
        axes = _column(radius * rng.uniform(0.87, 1.15, 3))
        distance = np.sqrt(((offset / axes) ** 2).sum(0)) + 0.08 * noise(5)
        lesion = np.clip(0.5 + (1 - distance) / 0.3, 0, 1) * np.clip(0.5 + room / 2, 0, 1)
        coarse, fine = noise(4), noise(1.6)
        target = {
            "bright": 0.90 + 0.05 * coarse,
            "dark": 0.30 + 0.04 * coarse,
            "ring": np.where(np.abs(distance - 0.82) < 0.2, 0.90, 0.34) + 0.03 * coarse,
            "speckled": 0.58 + 0.17 * fine,
        }[str(kind)]
        tissue = (tissue + rng.uniform(0.9, 1) * lesion * (target - tissue)).astype(np.float32)
        mask |= (lesion >= 0.5).astype(np.uint8)
        free[np.sqrt((offset**2).sum(0)) < radius + 22] = -np.inf  # no two lesions touch
    return tissue, mask


def _scan(rng: np.random.Generator, seed: int, spacing: Floats, tissue: Floats) -> NDArray[np.int16]:
    """What a scanner stores of the tissue: coil bias, contrast, gain and Rician noise."""
    # Consecutive seeds spread evenly over the settings, so that small groups of cases are alike by design.
    spread = seed * np.array([0.8191725134, 0.6710436067, 0.5497004779]) % 1
    # plain floats: NumPy 1 and 2 then compute in the same precision
    contrast, gain, sigma = (np.array([0.85, 350, 0.018]) + spread * [0.35, 750, 0.017]).tolist()
    signal = np.maximum(tissue, 0) ** contrast * np.exp(0.08 * _noise(rng, spacing, 40))
    real, imaginary = rng.normal(0, sigma, (2, *SHAPE))
    stored: NDArray[np.int16] = np.rint(gain * np.hypot(signal + real, imaginary)).astype(np.int16)
    return stored


def _grid(spacing: Floats) -> Floats:
    """Voxel positions from the centre of the grid in mm: (3, X, Y, Z)."""
    return (np.indices(SHAPE, np.float32) - (_column(SHAPE) - 1) / 2) * _column(spacing)


def _column(values: Sequence[float] | Floats) -> Floats:
    """One number per axis, ready to meet a field of positions: (3, 1, 1, 1)."""
    return np.asarray(values, np.float32).reshape(3, 1, 1, 1)


def _noise(rng: np.random.Generator, spacing: Floats, mm: float) -> Floats:
    """Gaussian field of zero mean and unit variance, smooth over about `mm`: (X, Y, Z)."""
    spectrum = fft.rfftn(rng.standard_normal(SHAPE, np.float32))
    spectrum = ndimage.fourier_gaussian(spectrum, mm / spacing, n=SHAPE[-1])
    spectrum[0, 0, 0] = 0
    field = fft.irfftn(spectrum, SHAPE)
    return np.asarray(field / field.std(), np.float32)


def _ellipsoid(offset: tuple[Floats, Floats, Floats], axes: tuple[float, float, float]) -> Floats:
    """About how far (mm) each voxel is inside an ellipsoid."""
    radius = np.sqrt(((np.stack(offset) / _column(axes)) ** 2).sum(0))
    return np.asarray((1 - radius) * min(axes), np.float32)


def _rotation(degrees: Floats) -> Floats:
    """Rotation about the three axes in turn: (3, 3)."""
    return np.asarray(Rotation.from_euler("xyz", degrees, degrees=True).as_matrix(), np.float64)


def write_phantom(
    folder: str | os.PathLike[str],
    *,
    n_train: int = 40,
    n_test_normal: int = 20,
    n_test_abnormal: int = 20,
    seed: int = 0,
) -> Path:
    """Write the data set as NIfTI volumes with a manifest, or find it already written.

    The folder gets `images/<case>.nii.gz`, `masks/<case>.nii.gz` for abnormal cases, `manifest.csv` with the
    columns path, split, abnormal, mask, case, and `phantom.json`, which tells what the folder holds. It
    appears complete or not at all, also when several processes ask for it at once.

    Args:
        folder: where the data set goes; absent, empty, or written earlier with the same arguments.
        n_train: normal volumes to train on.
        n_test_normal: normal volumes to test on.
        n_test_abnormal: volumes with 1 to 3 lesions to test on.
        seed: whole number from 0; the same seed gives the same bytes.

    Returns:
        The folder.

    Raises:
        ValueError: if an argument is negative, or if the folder holds anything else.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "volumes")
        >>> folder = write_phantom(folder, n_train=1, n_test_normal=0, n_test_abnormal=1)
        >>> print((folder / "manifest.csv").read_text())
        path,split,abnormal,mask,case
        images/train_normal_000.nii.gz,train,0,,train_normal_000
        images/test_abnormal_000.nii.gz,test,1,masks/test_abnormal_000.nii.gz,test_abnormal_000
        <BLANKLINE>
    """
    counts = {"n_train": n_train, "n_test_normal": n_test_normal, "n_test_abnormal": n_test_abnormal}
    return _write_once(Path(folder), {"kind": "volumes", **counts, "seed": seed}, _write_volumes)


def write_phantom_slices(
    folder: str | os.PathLike[str],
    *,
    n_train: int = 40,
    n_test_normal: int = 20,
    n_test_abnormal: int = 20,
    seed: int = 0,
) -> Path:
    """Write one axial slice per volume as an 8-bit PNG, in a folder per class, or find it already written.

    The folder gets `train/NORMAL`, `test/NORMAL`, `test/ABNORMAL` and, with the same file names,
    `test_masks/ABNORMAL` (0 and 255). Front is up and the patient's right is on the left. An abnormal slice
    is the one with most lesion; a normal one is where the same seed would put most lesion, so heights agree.

    Args:
        folder: where the data set goes; absent, empty, or written earlier with the same arguments.
        n_train: normal slices to train on.
        n_test_normal: normal slices to test on.
        n_test_abnormal: slices with a lesion to test on.
        seed: whole number from 0; the same seed gives the same bytes.

    Returns:
        The folder.

    Raises:
        ValueError: if an argument is negative, or if the folder holds anything else.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "slices")
        >>> folder = write_phantom_slices(folder, n_train=1, n_test_normal=0, n_test_abnormal=1)
        >>> sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))[:2]
        ['test/ABNORMAL/test_abnormal_000.png', 'test_masks/ABNORMAL/test_abnormal_000.png']
    """
    counts = {"n_train": n_train, "n_test_normal": n_test_normal, "n_test_abnormal": n_test_abnormal}
    return _write_once(Path(folder), {"kind": "slices", **counts, "seed": seed}, _write_slices)


def _write_volumes(folder: Path, asked: dict[str, Any]) -> None:
    """Fill a new folder with volumes, masks and the manifest."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rows = [("path", "split", "abnormal", "mask", "case")]
    for case, split, abnormal, seed, n_lesions in _cases(asked):
        volume = make_volume(seed, n_lesions if abnormal else 0)
        path, mask = f"images/{case}.nii.gz", f"masks/{case}.nii.gz" if abnormal else ""
        for name, voxels in ((path, volume.image), (mask, volume.mask)):
            if name:
                image = nib.Nifti1Image(voxels, volume.affine)
                image.set_qform(volume.affine, code="scanner")
                image.set_sform(volume.affine, code="scanner")
                image.header.set_xyzt_units("mm")
                nib.save(image, folder / name)
        rows.append((path, split, str(int(abnormal)), mask, case))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write_slices(folder: Path, asked: dict[str, Any]) -> None:
    """Fill a new folder with slices and masks, one folder per class."""
    for name in ("train/NORMAL", "test/NORMAL", "test/ABNORMAL", "test_masks/ABNORMAL"):
        (folder / name).mkdir(parents=True)
    for case, split, abnormal, seed, n_lesions in _cases(asked):
        with_lesions = make_volume(seed, n_lesions)
        volume = with_lesions if abnormal else make_volume(seed)
        image, mask = (
            np.asarray(nib.as_closest_canonical(nib.Nifti1Image(a, volume.affine)).dataobj)
            for a in (volume.image, with_lesions.mask)
        )
        z = int(mask.sum((0, 1)).argmax())
        grey = np.clip(image / np.percentile(image, 99.5), 0, 1)
        kind = "ABNORMAL" if abnormal else "NORMAL"
        _save_png(folder / split / kind / f"{case}.png", grey[:, :, z])
        if abnormal:
            _save_png(folder / "test_masks" / kind / f"{case}.png", mask[:, :, z])


def _save_png(path: Path, plane: NDArray[Any]) -> None:
    """Save a RAS plane (X, Y) in [0, 1]: rows from front to back, columns from right to left."""
    Image.fromarray(np.rint(255 * plane[::-1, ::-1].T).astype(np.uint8)).save(path)


def _cases(asked: dict[str, Any]) -> list[tuple[str, str, bool, int, int]]:
    """Name, split, abnormal, seed and number of lesions; the same whatever the other counts are."""
    cases = []
    groups = (
        ("train", False, "n_train"),
        ("test", False, "n_test_normal"),
        ("test", True, "n_test_abnormal"),
    )
    for group, (split, abnormal, count) in enumerate(groups):
        first = int(np.random.SeedSequence([asked["seed"], group]).generate_state(1)[0])
        for i in range(asked[count]):
            name = f"{split}_{'abnormal' if abnormal else 'normal'}_{i:03d}"
            cases.append((name, split, abnormal, first + i, 1 + i % MAX_LESIONS))
    return cases


def _write_once(folder: Path, asked: dict[str, Any], write: Callable[[Path, dict[str, Any]], None]) -> Path:
    """Write beside the folder and move it there in one step, so that no one ever sees half a data set."""
    for name in ("n_train", "n_test_normal", "n_test_abnormal", "seed"):
        if asked[name] < 0:
            raise ValueError(f"{name} must be 0 or larger, but is {asked[name]}.")
    asked = {"recipe": RECIPE, **asked}
    target = folder.resolve()  # a link to an empty folder is written through, not replaced
    if _is_written(target, asked):
        return folder
    try:
        with new_folder(target) as draft:
            write(draft, asked)
            files = sorted(p.relative_to(draft).as_posix() for p in draft.rglob("*") if p.is_file())
            write_json(draft / "phantom.json", {**asked, "files": files})
    except OSError:  # another process was first, which is fine if it wrote the same
        if not _is_written(target, asked):
            raise
    return folder


def _is_written(target: Path, asked: dict[str, Any]) -> bool:
    """Tell whether the data set is there; refuse a folder that holds something else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / "phantom.json").read_text(encoding="utf-8"))
        files = found.pop("files")
        missing = [name for name in files if not (target / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        held = "something that is no complete phantom data set (it has no readable phantom.json)"
    else:
        if found == asked and not missing:
            return True
        held = f"a phantom data set with {found}" + (f" which lacks {missing[0]}" if missing else "")
    raise ValueError(f"{target} holds {held}; asked was {asked}. Delete the folder or choose another one.")

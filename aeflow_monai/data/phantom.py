"""The embedded data set: synthetic head volumes, normal or with known lesions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

__all__ = ["MAX_LESIONS", "RECIPE", "PhantomVolume", "make_volume"]

Floats = NDArray[np.floating[Any]]
RECIPE = 2  # raise it when a seed's voxels change, so that folders of an older recipe are refused
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
    """Make one head scan; lesions are added to the scan that the same seed gives without them.

    Args:
        seed: whole number from 0; it fixes pose, anatomy, intensities, geometry and the lesions.
        n_lesions: number of lesions to add, 0 to 3, each 9 to 19 mm in radius.

    Returns:
        The volume. Its axes may be permuted or flipped, as its affine describes; in RAS order the shape is
        (96, 112, 20), with about 2 mm within a slice and 5 mm between slices.

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
    # One stream each, so that adding lesions does not change the anatomy or the noise.
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
    """Return the relative signal of a head, and the depth (mm) of each voxel in brain tissue; both (X, Y, Z), RAS."""
    grid, noise = _grid(spacing), partial(_noise, rng, spacing)
    pose = _rotation(rng.uniform(-6, 6, 3)) / rng.uniform(0.94, 1.05, 3)
    warp = np.stack([noise(24) for _ in range(3)])
    shift = rng.uniform((-4, -4, 14), (4, 4, 22))  # the slices reach from the base of the brain to its top
    u, v, w = np.tensordot(pose, grid, 1).astype(np.float32) + 2.2 * warp + _column(shift)
    side = np.abs(u)  # the head is nearly symmetric; warp and pose break it

    # Depth below the skin along the ray from the centre: an ellipsoid that is narrower in front.
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
    """Return the tissue with lesions blended in, and their mask; both (X, Y, Z)."""
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
    """Simulate the scan of the tissue: coil bias, contrast, gain and Rician noise."""
    # Consecutive seeds spread evenly over the settings, so that small groups of cases are alike by design.
    spread = seed * np.array([0.8191725134, 0.6710436067, 0.5497004779]) % 1
    # Python floats, so that NumPy 1 and 2 compute in the same precision
    contrast, gain, sigma = (np.array([0.85, 350, 0.018]) + spread * [0.35, 750, 0.017]).tolist()
    signal = np.maximum(tissue, 0) ** contrast * np.exp(0.08 * _noise(rng, spacing, 40))
    real, imaginary = rng.normal(0, sigma, (2, *SHAPE))
    stored: NDArray[np.int16] = np.rint(gain * np.hypot(signal + real, imaginary)).astype(np.int16)
    return stored


def _grid(spacing: Floats) -> Floats:
    """Return voxel positions in mm relative to the centre of the grid: (3, X, Y, Z)."""
    return (np.indices(SHAPE, np.float32) - (_column(SHAPE) - 1) / 2) * _column(spacing)


def _column(values: Sequence[float] | Floats) -> Floats:
    """Reshape one number per axis to broadcast with a field of positions: (3, 1, 1, 1)."""
    return np.asarray(values, np.float32).reshape(3, 1, 1, 1)


def _noise(rng: np.random.Generator, spacing: Floats, mm: float) -> Floats:
    """Return a Gaussian random field of zero mean and unit variance, smooth over about `mm`: (X, Y, Z)."""
    spectrum = fft.rfftn(rng.standard_normal(SHAPE, np.float32))
    spectrum = ndimage.fourier_gaussian(spectrum, mm / spacing, n=SHAPE[-1])
    spectrum[0, 0, 0] = 0
    field = fft.irfftn(spectrum, SHAPE)
    return np.asarray(field / field.std(), np.float32)


def _ellipsoid(offset: tuple[Floats, Floats, Floats], axes: tuple[float, float, float]) -> Floats:
    """Return the approximate depth (mm) of each voxel inside an ellipsoid."""
    radius = np.sqrt(((np.stack(offset) / _column(axes)) ** 2).sum(0))
    return np.asarray((1 - radius) * min(axes), np.float32)


def _rotation(degrees: Floats) -> Floats:
    """Return the rotation about the three axes in turn: (3, 3)."""
    return np.asarray(Rotation.from_euler("xyz", degrees, degrees=True).as_matrix(), np.float64)

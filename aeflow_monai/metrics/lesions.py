"""Detection of individual lesions by anomaly maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from monai.metrics.froc import compute_fp_tp_probs_nd, compute_froc_curve_data, compute_froc_score
from scipy.spatial import cKDTree

from aeflow_monai.metrics.candidates import find_candidates
from aeflow_monai.metrics.inputs import Map, components, read_inputs, require_lesion

__all__ = ["Lesion", "LesionMetrics"]

# the rates of CAMELYON16, over which MONAI averages too
FALSE_POSITIVES = (0.25, 0.5, 1, 2, 4, 8)


class Lesion(NamedTuple):
    """A lesion, and the anomaly map in it.

    Attributes:
        n_voxels: number of voxels of the mask.
        diameter_mm: diameter of a ball (in 2D a disc) of the same size.
        map_value: largest map value in the lesion.
    """

    n_voxels: int
    diameter_mm: float
    map_value: float


class LesionMetrics:
    """Free-response ROC: fraction of lesions hit by candidates of an anomaly map, against false positives per volume.

    Candidates are the local maxima of a map: the voxels that no other voxel within `radius_mm` exceeds and that are
    larger than the map's median, at most the `max_candidates` largest of a volume. Adjacent equal maxima (a plateau)
    are one candidate, at the voxel closest to their centre. A candidate's confidence is its map value. It hits the
    closest lesion if that is not farther than `tolerance_mm` between voxel centres, and is a false positive otherwise.
    Several candidates that hit one lesion count once, with the largest confidence. Lesions are the mask's 26-connected
    components (8-connected in 2D). Normal volumes count as volumes, and all their candidates as false positives.

    Memory grows by at most `max_candidates` numbers, plus one for each lesion, per volume.

    Args:
        radius_mm: Radius within which a candidate is the maximum, in mm; has to reach a voxel's neighbours.
        tolerance_mm: Largest distance of a candidate from the lesion that it hits, in mm, at least 0.
        max_candidates: Largest number of candidates of a volume, at least 1.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> anomaly_map, mask = np.zeros((20, 20, 20)), np.zeros((20, 20, 20))
        >>> mask[4:7, 4:7, 4:7] = mask[15, 15, 15] = 1
        >>> anomaly_map[5, 5, 5], anomaly_map[5, 15, 5] = 3, 2  # a hit and a false positive; one lesion is missed
        >>> metrics = LesionMetrics()
        >>> [lesion.map_value for lesion in metrics.update(anomaly_map, mask, spacing_mm=(1, 1, 1))]
        [3.0, 0.0]
        >>> report = metrics.compute()
        >>> report["n_lesions"], report["lesion_sensitivity"]["1"], report["froc_score"]
        (2, 0.5, 0.5)

    Source: `monai.metrics.froc`, after the evaluation of CAMELYON16; candidates are this project's.
    """

    def __init__(self, radius_mm: float = 5.0, tolerance_mm: float = 2.0, max_candidates: int = 50) -> None:
        if not (radius_mm > 0 and math.isfinite(radius_mm)):
            raise ValueError(f"radius_mm has to be positive and finite, got {radius_mm}.")
        if not (tolerance_mm >= 0 and math.isfinite(tolerance_mm)):
            raise ValueError(f"tolerance_mm has to be finite and at least 0, got {tolerance_mm}.")
        if max_candidates < 1:
            raise ValueError(f"max_candidates has to be at least 1, got {max_candidates}.")
        self.radius_mm = radius_mm
        self.tolerance_mm = tolerance_mm
        self.max_candidates = max_candidates
        self.reset()

    def reset(self) -> None:
        """Reset the metric."""
        self._false: list[Map] = []
        self._found: list[Map] = []
        self._n_volumes = self._n_abnormal = self._n_lesions = self._n_candidates = 0

    def update(
        self, anomaly_map: Any, mask: Any, spacing_mm: Sequence[float], region: Any | None = None
    ) -> list[Lesion]:
        """Add one volume or image.

        Args:
            anomaly_map: Finite values, larger is more abnormal, shape (H, W[, D]) or (1, H, W[, D]), array or tensor.
                Converted to float32.
            mask: Nonzero at lesions, same shape; all zero for a normal volume.
            spacing_mm: Distance of voxel centres along each of H, W[, D], in mm.
            region: Nonzero where candidates may lie, for example in the brain; same shape. The median is that of the
                region. If None, they may lie anywhere. Lesions outside it still count.

        Returns:
            The lesions of this volume.

        Raises:
            ValueError: Shapes are wrong or differ, the map is not finite, the mask or region contains NaN, the region
                is empty, or the spacing is wrong.
        """
        values, lesion, inside = read_inputs(anomaly_map, mask, region)
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        if spacing.shape != (values.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
            raise ValueError(
                f"spacing_mm has to be {values.ndim} positive numbers, one for each axis of the map of shape "
                f"{values.shape}, got {spacing.tolist()}."
            )
        if inside is not None and not inside.any():
            raise ValueError("region has to be nonzero somewhere, but is empty: omit it to take all voxels.")
        coords = find_candidates(values, inside, spacing, self.radius_mm)[: self.max_candidates]
        lesions, n_lesions = components(lesion)
        sizes = np.bincount(lesions[lesion], minlength=n_lesions + 1)[1:]
        largest = np.full(n_lesions + 1, -np.inf, np.float32)
        np.maximum.at(largest, lesions[lesion], values[lesion])
        if n_lesions and len(coords):
            # dilated lesions, evaluated at the candidates only
            voxels = np.argwhere(lesion)
            distance, index = cKDTree(voxels * spacing).query(coords * spacing)
            near = distance <= self.tolerance_mm + 1e-6
            lesions[tuple(coords[near].T)] = lesions[tuple(voxels[index[near]].T)]

        # MONAI marks a missed lesion by confidence 0, but maps may be negative; so ranks from 1 replace confidences
        confidence = np.append(values[tuple(coords.T)], np.float32(-np.inf))  # missed lesions rank last
        ranks = np.arange(len(coords), 0, -1)
        false_ranks, found_ranks, _ = compute_fp_tp_probs_nd(ranks, coords, lesions)
        self._false.append(confidence[len(coords) - false_ranks.astype(np.int64)])
        self._found.append(confidence[len(coords) - found_ranks.astype(np.int64)])
        self._n_volumes += 1
        self._n_abnormal += int(n_lesions > 0)
        self._n_lesions += n_lesions
        self._n_candidates += len(coords)
        voxel = float(spacing.prod())
        return [
            Lesion(int(size), _diameter(size * voxel, values.ndim), float(value))
            for size, value in zip(sizes, largest[1:], strict=True)
        ]

    def compute(self) -> dict[str, Any]:
        """Compute the metrics of all volumes so far.

        Returns:
            A JSON-serialisable dictionary of plain ints and floats:

            - `n_volumes`, `n_abnormal_volumes`, `n_lesions`, `n_candidates`: the counts.
            - `lesion_sensitivity`: the fraction of lesions hit, by false positives per volume: "0.25", "0.5", "1", "2",
              "4", "8". It is interpolated between the rates that thresholds reach, and constant beyond the last one, at
              which all candidates count.
            - `froc_score`: the mean of these six.
            - `candidate_radius_mm`, `hit_tolerance_mm`, `max_candidates`: the settings.

        Raises:
            ValueError: No volume has a lesion.
        """
        require_lesion(self._n_volumes, self._n_abnormal)
        # MONAI drops the lowest confidence, assuming that of missed lesions, so there has to be one
        false = np.concatenate([*self._false, np.array([-np.inf], np.float32)])
        rate, sensitivity = compute_froc_curve_data(
            false, np.concatenate(self._found), self._n_lesions, self._n_volumes
        )
        return {
            "n_volumes": self._n_volumes,
            "n_abnormal_volumes": self._n_abnormal,
            "n_lesions": self._n_lesions,
            "n_candidates": self._n_candidates,
            "lesion_sensitivity": {
                f"{allowed:g}": float(compute_froc_score(rate, sensitivity, (allowed,))) for allowed in FALSE_POSITIVES
            },
            "froc_score": float(compute_froc_score(rate, sensitivity, FALSE_POSITIVES)),
            "candidate_radius_mm": float(self.radius_mm),
            "hit_tolerance_mm": float(self.tolerance_mm),
            "max_candidates": int(self.max_candidates),
        }


def _diameter(size: float, n_axes: int) -> float:
    """Return the diameter of a ball of this volume, or a disc of this area."""
    return float(2 * math.sqrt(size / math.pi) if n_axes == 2 else 2 * (3 * size / (4 * math.pi)) ** (1 / 3))

"""Localisation of lesions by anomaly maps, voxel by voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.integrate import trapezoid

from aeflow_monai.metrics.inputs import Map, components, read_inputs, require_lesion

__all__ = ["VoxelMetrics"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint32]


class VoxelMetrics:
    """Voxel AUROC, average precision, AUPRO and Dice of anomaly maps, in constant memory for any number of volumes.

    Voxels are counted in a histogram whose bins are the leading bits of the float32 value: sign, exponent and the first
    `n_bits` - 9 bits of the mantissa. So no range has to be given, and two values share a bin only if they differ by
    less than the factor 1 + 2^(9 - n_bits), 0.05 % by default. The order within a bin is unknown; a lesion voxel and
    another one in the same bin count half. `voxel_auroc_error` bounds the effect on the AUROC: it is near 0 for maps
    around 0, such as those of `Score`, and large for maps that vary little around a large number, from which a constant
    has to be subtracted first.

    Voxels that count are those of lesions, and those without lesion in the `region` of `update` (all if it is None). A
    map value larger than the threshold is positive (not if equal).

    Memory is 4 arrays of 2^n_bits numbers, 32 MB by default.

    Args:
        n_bits: Number of leading bits that define a bin, in [9, 24].
        fpr_limit: The false positive rate up to which AUPRO is integrated, in (0, 1].

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> anomaly_map, mask = np.zeros((8, 8, 8)), np.zeros((8, 8, 8))
        >>> mask[2:4, 2:4, 2:4] = 1
        >>> anomaly_map[2:4, 2:4, 2:5] = 3
        >>> metrics = VoxelMetrics()
        >>> metrics.update(anomaly_map, mask)
        >>> report = metrics.compute(threshold=1)
        >>> report["dice"], round(report["voxel_auroc"], 3), report["n_regions"]
        (0.8, 0.996, 1)

    Source: per-region overlap of Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 5.2.
    """

    def __init__(self, n_bits: int = 20, fpr_limit: float = 0.3) -> None:
        if not 9 <= n_bits <= 24:
            raise ValueError(f"n_bits has to be in [9, 24] (memory grows as 32 bytes * 2^n_bits), got {n_bits}.")
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit is a false positive rate and has to be in (0, 1], got {fpr_limit}.")
        self.n_bits = n_bits
        self.fpr_limit = fpr_limit
        self.reset()

    def reset(self) -> None:
        """Reset the metric."""
        n_bins = 2**self.n_bits
        self._normal: Ints = np.zeros(n_bins, np.int64)
        self._lesion: Ints = np.zeros(n_bins, np.int64)
        # regions, each voxel with the inverse of its region's size as weight, so that regions count the same
        self._regions: Floats = np.zeros(n_bins)
        # for each bin, the sum over abnormal volumes of the Dice at a threshold just below it
        self._dice: Floats = np.zeros(n_bins)
        self._n_volumes = self._n_abnormal = self._n_regions = 0

    def update(self, anomaly_map: Any, mask: Any, region: Any | None = None) -> None:
        """Add one volume or image.

        Args:
            anomaly_map: Finite values, larger is more abnormal, shape (H, W[, D]) or (1, H, W[, D]), array or tensor.
                Converted to float32.
            mask: Nonzero at lesions, same shape. Its 26-connected components (8-connected in 2D) are the regions of
                AUPRO. All zero for a normal volume.
            region: Nonzero where voxels without lesion count, for example in the brain; same shape. Lesion voxels
                always count. If None, all voxels count.

        Raises:
            ValueError: Shapes are wrong or differ, the map is not finite, or the mask or region contains NaN.
        """
        values, lesion, counted = read_inputs(anomaly_map, mask, region)
        keys = _keys(values, self.n_bits)
        n_bins = 2**self.n_bits
        counts = np.bincount((keys if counted is None else keys[counted | lesion]).ravel(), minlength=n_bins)
        self._n_volumes += 1
        if not lesion.any():
            self._normal += counts
            return
        (box,) = ndimage.find_objects(lesion.view(np.uint8))
        labels, n_regions = components(lesion[box])
        inside = labels > 0
        labels, lesion_keys = labels[inside], keys[box][inside]
        lesion_counts = np.bincount(lesion_keys, minlength=n_bins)
        self._normal += counts - lesion_counts
        self._lesion += lesion_counts
        self._regions += np.bincount(lesion_keys, weights=1 / np.bincount(labels)[labels], minlength=n_bins)
        self._dice[::-1] += 2 * np.cumsum(lesion_counts[::-1]) / (np.cumsum(counts[::-1]) + len(labels))
        self._n_abnormal += 1
        self._n_regions += n_regions

    def compute(self, threshold: float) -> dict[str, Any]:
        """Compute the metrics of all volumes so far, with a threshold that was stored before they were seen.

        The threshold is exact only up to its bin: values in the same bin are negative.

        Args:
            threshold: The stored threshold, in the unit of the maps.

        Returns:
            A JSON-serialisable dictionary of plain ints and floats:

            - `n_volumes`, `n_abnormal_volumes`, `n_regions`, `n_voxels`, `n_lesion_voxels`: the counts.
            - `lesion_fraction`: the fraction of lesion voxels, which is the average precision of chance.
            - `voxel_auroc`, `voxel_average_precision`: over all voxels of all volumes.
            - `voxel_auroc_error`: bound on the difference between this AUROC and that of the unbinned float32 values;
              it includes true ties, which cannot be distinguished from shared bins.
            - `aupro`, `aupro_fpr_limit`: the fraction of a region above the threshold, mean over regions of all
              volumes, as a function of the false positive rate, integrated from 0 to the limit and divided by it; in
              [0, 1].
            - `map_threshold`: the stored threshold.
            - `dice`: at that threshold, over all voxels of all volumes together.
            - `mean_volume_dice`: at that threshold, mean over abnormal volumes; normal ones do not count.
            - `oracle_best_dice`, `oracle_best_mean_volume_dice`: the best of both over all thresholds.
            - `oracle_map_threshold`, `oracle_mean_volume_threshold`: the thresholds that reach them.

            Values with "oracle" in their name are chosen on the test labels: they are an upper bound, not a result.

        Raises:
            ValueError: The threshold is not finite, no volume has a lesion, or there is no voxel without one.
        """
        threshold = _finite_threshold(threshold)
        n_lesion, n_normal = int(self._lesion.sum()), int(self._normal.sum())
        require_lesion(self._n_volumes, self._n_abnormal)
        if not n_normal:
            raise ValueError(
                f"Voxels without lesion are needed, but all {n_lesion} that count are lesions: give maps larger than "
                "their lesions, and a region that is not empty."
            )
        bins = np.flatnonzero(self._normal + self._lesion)[::-1]  # from the most abnormal value down
        hits = np.cumsum(self._lesion[bins], dtype=np.float64)
        false_alarms = np.cumsum(self._normal[bins], dtype=np.float64)
        start = np.zeros(1)
        sensitivity = np.concatenate([start, hits / n_lesion])
        false_rate = np.concatenate([start, false_alarms / n_normal])
        overlap = np.concatenate([start, np.cumsum(self._regions[bins]) / self._n_regions])
        dice = 2 * hits / (hits + false_alarms + n_lesion)
        mean_dice = self._dice[bins] / self._n_abnormal
        n_called = int((bins > int(_keys(np.array([threshold], np.float32), self.n_bits)[0])).sum())
        best, best_mean = int(dice.argmax()), int(mean_dice.argmax())
        return {
            "n_volumes": self._n_volumes,
            "n_abnormal_volumes": self._n_abnormal,
            "n_regions": self._n_regions,
            "n_voxels": n_lesion + n_normal,
            "n_lesion_voxels": n_lesion,
            "lesion_fraction": n_lesion / (n_lesion + n_normal),
            "voxel_auroc": float(trapezoid(sensitivity, false_rate)),
            "voxel_auroc_error": float(0.5 * (np.diff(sensitivity) @ np.diff(false_rate))),
            "voxel_average_precision": float(np.diff(sensitivity) @ (hits / (hits + false_alarms))),
            "aupro": _area_to(self.fpr_limit, false_rate, overlap),
            "aupro_fpr_limit": float(self.fpr_limit),
            "map_threshold": threshold,
            "dice": float(dice[n_called - 1]) if n_called else 0.0,
            "mean_volume_dice": float(mean_dice[n_called - 1]) if n_called else 0.0,
            "oracle_best_dice": float(dice[best]),
            "oracle_map_threshold": _below(int(bins[best]), self.n_bits),
            "oracle_best_mean_volume_dice": float(mean_dice[best_mean]),
            "oracle_mean_volume_threshold": _below(int(bins[best_mean]), self.n_bits),
        }


def _finite_threshold(threshold: float) -> float:
    threshold = float(threshold)
    if not abs(threshold) <= np.finfo(np.float32).max:
        raise ValueError(f"threshold has to be finite, got {threshold}: calibrate the model first.")
    return threshold


def _keys(values: Map, n_bits: int) -> Keys:
    """Return the bin of each value, in the order of the values."""
    keys: Keys = (values + np.float32(0)).view(np.uint32)  # the sum turns -0 into 0
    # floats order as sign and magnitude: flip all bits of negative numbers, and only the sign of others
    keys ^= (keys.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)
    keys >>= np.uint32(32 - n_bits)
    return keys


def _below(key: int, n_bits: int) -> float:
    """Return the largest float32 below a bin: a threshold at which this bin and those above are positive."""
    bits = (key << (32 - n_bits)) - 1
    bits = bits ^ (1 << 31) if bits >> 31 else ~bits & 0xFFFFFFFF
    # -0 equals 0, so the next smaller number is used
    return float(np.array([bits], np.uint32).view(np.float32)[0]) or float(np.nextafter(np.float32(0), np.float32(-1)))


def _area_to(limit: float, x: Floats, y: Floats) -> float:
    """Compute the mean of a piecewise linear curve from 0 to a limit."""
    end = int(np.searchsorted(x, limit, side="right"))
    area = trapezoid(np.append(y[:end], np.interp(limit, x, y)), np.append(x[:end], limit))
    return float(area / limit)

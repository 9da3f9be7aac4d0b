"""Maps and masks that are drawn, for the tests of the metrics."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from aeflow_monai.metrics import VoxelMetrics

Array = npt.NDArray[Any]
MM = (1.0, 1.0, 1.0)


def draw_volume(seed: int, shape: tuple[int, ...] = (20, 18, 16), n_lesions: int = 2) -> tuple[Array, Array]:
    """A smooth map around 0 and boxes that it is a little larger in."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    for _ in range(n_lesions):
        corner = [int(generator.integers(0, size - 4)) for size in shape]
        mask[tuple(slice(low, low + int(generator.integers(2, 5))) for low in corner)] = 1
    noise = ndimage.gaussian_filter(generator.normal(size=shape), 1)
    return (noise / noise.std() + 1.5 * mask).astype(np.float32), mask


def draw_set(n: int = 5) -> list[tuple[Array, Array]]:
    """Volumes of which every third is normal."""
    return [draw_volume(seed, n_lesions=seed % 3) for seed in range(n)]


def filled(volumes: list[tuple[Array, Array]], **settings: Any) -> VoxelMetrics:
    metrics = VoxelMetrics(**settings)
    for anomaly_map, mask in volumes:
        metrics.update(anomaly_map, mask)
    return metrics

"""Time and memory of VoxelMetrics on volumes of the size of a brain MRI, against scikit-learn on the same voxels.

Volumes are seeded noise with one box as lesion, made one at a time. Peak memory is the allocation of Python and NumPy
without imports: one volume, the work on it, and the state kept of earlier ones. Usage:

    python benchmarks/localisation.py [--shape 240 240 155] [--repeats 3] [--volumes 1 20]
"""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Callable

import numpy as np
from shared import arguments, in_turn
from sklearn.metrics import roc_auc_score

from aeflow_monai.metrics import LesionMetrics, VoxelMetrics


def draw_volume(shape: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(size // 2, size // 2 + size // 8) for size in shape)] = True
    anomaly_map = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    anomaly_map[mask] += 1
    return anomaly_map, mask


def peak_megabytes(metrics_class: type[VoxelMetrics | LesionMetrics], shape: list[int], n_volumes: int) -> float:
    tracemalloc.start()
    metrics = metrics_class()
    spacing = {"spacing_mm": (1, 1, 1)} if metrics_class is LesionMetrics else {}
    for seed in range(n_volumes):
        metrics.update(*draw_volume(shape, seed), **spacing)
    metrics.compute(**({} if spacing else {"threshold": 1}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[240, 240, 155])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--volumes", type=int, nargs="+", default=[1, 20])
    options = parser.parse_args()

    anomaly_map, mask = draw_volume(options.shape, 0)
    metrics = VoxelMetrics()
    lesions = LesionMetrics()
    labels, scores = mask.ravel(), anomaly_map.ravel()
    ways: dict[str, Callable[[], object]] = {
        "update": lambda: metrics.update(anomaly_map, mask),
        "compute": lambda: metrics.compute(threshold=1),
        "sklearn": lambda: roc_auc_score(labels, scores),
        "lesions": lambda: lesions.update(anomaly_map, mask, (1, 1, 1)),
    }
    times = in_turn(ways, options.repeats, warm_up=False)
    update, compute, sklearn, lesion_update = (statistics.median(found) for found in times.values())
    report = metrics.compute(threshold=1)
    print(f"{anomaly_map.size} voxels, {mask.sum()} of them lesion; median of {options.repeats}")
    print(f"VoxelMetrics.update   {update:.3f} s, once per volume")
    print(f"VoxelMetrics.compute  {compute:.3f} s, once")
    print(f"roc_auc_score         {sklearn:.3f} s: {sklearn / update:.1f} times one update, for the AUROC alone")
    print(f"LesionMetrics.update  {lesion_update:.3f} s, once per volume")
    difference = abs(report["voxel_auroc"] - roc_auc_score(labels, scores))
    print(f"difference of the AUROC {difference:.1e}, bound {report['voxel_auroc_error']:.1e}")
    for metrics_class in (VoxelMetrics, LesionMetrics):
        for n_volumes in options.volumes:
            peak = peak_megabytes(metrics_class, options.shape, n_volumes)
            print(f"peak memory of {metrics_class.__name__} with {n_volumes} volumes: {peak:.0f} MB")


if __name__ == "__main__":
    main()

"""Time of the metrics, as ratios to scikit-learn's in the same run.

python benchmarks/metrics_speed.py

Synthetic scores of 600 cases, and a synthetic map of a volume of 240 x 240 x 155 voxels, both with seed 0.
"""

from __future__ import annotations

import numpy as np
from shared import seconds
from sklearn.metrics import average_precision_score, roc_auc_score

from aeflow_monai.metrics import VoxelMetrics, detection_report

N_BOOTSTRAP = 1000


def main() -> None:
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(600) % 3 == 0).astype(int)
    scores = generator.normal(size=600) + labels

    def resample() -> None:
        for _ in range(N_BOOTSTRAP):
            chosen = generator.integers(0, 600, 600)
            roc_auc_score(labels[chosen], scores[chosen])
            average_precision_score(labels[chosen], scores[chosen])

    ours, theirs = seconds(lambda: detection_report(labels, scores, 0.5, n_bootstrap=N_BOOTSTRAP)), seconds(resample)
    print(f"intervals of six statistics, {N_BOOTSTRAP} resamples: {ours:.2f} s")
    print(f"scikit-learn, resampling two of them: {theirs:.2f} s; ratio {ours / theirs:.3f}")

    anomaly_map = generator.normal(size=(240, 240, 155)).astype(np.float32)
    lesion = np.zeros(anomaly_map.shape, bool)
    lesion[100:140, 90:120, 60:90] = True
    ours = seconds(lambda: VoxelMetrics().update(anomaly_map, lesion))
    theirs = seconds(lambda: roc_auc_score(lesion.ravel(), anomaly_map.ravel()))
    print(
        f"VoxelMetrics of a volume: {ours:.2f} s; scikit-learn, AUROC alone: {theirs:.2f} s; ratio {ours / theirs:.3f}"
    )


if __name__ == "__main__":
    main()

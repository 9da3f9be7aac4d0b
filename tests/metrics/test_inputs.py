"""What the metrics of voxels and of lesions take, and what they refuse."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from metrics.drawn import MM, draw_volume
from monai.data import MetaTensor

from aeflow_monai.metrics import LesionMetrics, VoxelMetrics

Array = npt.NDArray[Any]


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, np.asfortranarray, torch.as_tensor, MetaTensor, np.float64, "half"])
def test_arrays_and_tensors_count_alike(kind: Any, channel: bool) -> None:
    anomaly_map, mask = draw_volume(1)
    anomaly_map = np.round(anomaly_map, 1)
    metrics, lesions = VoxelMetrics(), LesionMetrics()
    metrics.update(anomaly_map, mask)
    lesions.update(anomaly_map, mask, MM)
    if kind == "half":
        anomaly_map = anomaly_map.astype(np.float16).astype(np.float32)
        metrics.reset()
        metrics.update(anomaly_map, mask)

        def kind(array: Array) -> Any:
            return torch.as_tensor(array, dtype=torch.float16).requires_grad_()

    given = [kind(x[None] if channel else x) for x in (anomaly_map, mask)]
    other, other_lesions = VoxelMetrics(), LesionMetrics()
    other.update(*given, region=given[1] + 1)
    other_lesions.update(*given, MM)
    assert other.compute(1) == metrics.compute(1)
    assert other_lesions.compute() == lesions.compute()


def test_update_leaves_its_input_alone() -> None:
    anomaly_map, mask = draw_volume(1)
    kept = anomaly_map.copy(), mask.copy()
    VoxelMetrics().update(anomaly_map, mask)
    LesionMetrics().update(anomaly_map, mask, MM, region=mask + 1)
    np.testing.assert_array_equal(anomaly_map, kept[0])
    np.testing.assert_array_equal(mask, kept[1])


@pytest.mark.parametrize("metrics", [VoxelMetrics(), LesionMetrics()])
def test_wrong_input_is_named(metrics: Any) -> None:
    anomaly_map, mask = draw_volume(1)
    more = (MM,) if isinstance(metrics, LesionMetrics) else ()
    bad = anomaly_map.copy()
    bad[0, 1, 2] = bad[3, 3, 3] = np.nan
    for values, lesion, message in (
        (anomaly_map, mask[1:], r"mask has to be of the anomaly_map's shape \(20, 18, 16\), got \(19, 18, 16\)"),
        (np.stack([anomaly_map] * 2), mask, r"anomaly_map has to be of shape .*, got \(2, 20, 18, 16\): give one"),
        (anomaly_map, np.ones(3), r"mask has to be of shape .*, got \(3,\)"),
        (bad, mask, r"finite in float32, got 2 of 5760 voxels .* the first \(nan\) at \(0, 1, 2\)"),
        (anomaly_map.astype(float) * 1e300, mask, "finite in float32, got"),
        (anomaly_map, bad, "mask has to be zero or nonzero everywhere, got 2 voxels that are NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.update(values, lesion, *more)
    with pytest.raises(ValueError, match=r"region has to be of the anomaly_map's shape"):
        metrics.update(anomaly_map, mask, *more, region=mask[1:])
    # nothing of a refused volume is counted
    metrics.update(anomaly_map, mask * 0, *more)
    with pytest.raises(ValueError, match="a lesion is needed, but of 1 volumes so far each mask is empty"):
        metrics.compute(*(() if more else (1.0,)))

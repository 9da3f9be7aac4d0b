from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from metrics.drawn import MM, draw_volume

from aeflow_monai.metrics import LesionMetrics

Array = npt.NDArray[Any]


def point_map(points: dict[tuple[int, int, int], float], low: float = 0.0) -> Array:
    values = np.full((40, 40, 40), low)
    for point, height in points.items():
        values[point] = height
    return values


@pytest.mark.parametrize("low", [0.0, -10.0])  # confidences of a standardised map may be negative
def test_froc_by_hand(low: float) -> None:
    mask = np.zeros((40, 40, 40))
    mask[5:8, 5:8, 5:8] = mask[20, 20, 20] = mask[30:33, 5, 5] = 1
    # the first lesion is hit twice, the second from 2 mm away, the third is missed; two false positives
    heights = {(5, 5, 5): 9, (7, 7, 13): 3, (7, 7, 7): 6, (20, 20, 22): 4, (35, 35, 35): 5, (35, 35, 5): 2}
    metrics = LesionMetrics(radius_mm=3)
    metrics.update(point_map({p: h + low for p, h in heights.items()}, low), mask, MM)
    metrics.update(point_map({(5, 5, 5): 7 + low}, low), mask * 0, MM)  # a normal volume with one false positive
    report = metrics.compute()
    assert (report["n_volumes"], report["n_abnormal_volumes"], report["n_lesions"]) == (2, 1, 3)
    assert report["n_candidates"] == 7
    # from the top: hit 9 (1/3 at 0), FP 7 (0.5 per volume), FP 5 (1), hit 4 (2/3 at 1), FP 3 (1.5), FP 2 (2)
    expected = {"0.25": 1 / 3, "0.5": 1 / 3, "1": 2 / 3, "2": 2 / 3, "4": 2 / 3, "8": 2 / 3}
    assert report["lesion_sensitivity"] == pytest.approx(expected)
    assert report["froc_score"] == pytest.approx(np.mean(list(expected.values())))


def test_each_lesion_has_its_size_and_its_largest_map_value() -> None:
    mask = np.zeros((40, 40, 40))
    mask[5:8, 5:8, 5:8] = mask[30, 30, 30] = 1
    found = LesionMetrics(radius_mm=3).update(point_map({(5, 5, 5): 2, (7, 7, 7): 6, (20, 20, 20): 9}), mask, (1, 1, 2))
    assert [(lesion.n_voxels, lesion.map_value) for lesion in found] == [(27, 6), (1, 0)]
    assert [lesion.diameter_mm for lesion in found] == pytest.approx(
        [(6 * 54 / np.pi) ** (1 / 3), (12 / np.pi) ** (1 / 3)]
    )
    flat = LesionMetrics(radius_mm=3).update(mask[6], mask[6], (1, 1))
    assert [lesion.diameter_mm for lesion in flat] == pytest.approx([2 * np.sqrt(9 / np.pi)])
    assert LesionMetrics().update(mask, mask * 0, MM) == []


def test_the_value_of_a_lesion_needs_no_peak_in_it() -> None:
    mask = np.zeros((40, 40, 40))
    mask[10, 10, 10:12] = 1
    metrics = LesionMetrics()
    values = point_map({(10, 10, 10): 3, (10, 10, 11): 4, (10, 10, 14): 5})  # the largest value near it is outside
    (lesion,) = metrics.update(values, mask, MM)
    assert lesion.map_value == 4
    assert metrics.compute()["froc_score"] == 0


def test_the_lowest_candidate_counts_too() -> None:
    mask = np.zeros((40, 40, 40))
    mask[5, 5, 5] = 1
    metrics = LesionMetrics()
    metrics.update(point_map({(5, 5, 5): 1}), mask, MM)
    assert metrics.compute()["froc_score"] == 1
    metrics.reset()
    metrics.update(point_map({(5, 5, 5): 1, (30, 30, 30): 2}), mask, MM)
    # the false positive comes first, so nothing is found with less than one
    assert metrics.compute()["lesion_sensitivity"] == {"0.25": 0, "0.5": 0, "1": 1, "2": 1, "4": 1, "8": 1}


def test_tolerance_is_in_mm() -> None:
    mask = np.zeros((40, 40, 40))
    mask[10, 10, 10] = 1
    values = point_map({(10, 10, 12): 1})
    for spacing, tolerance, expected in (((1, 1, 1), 2, 1), ((1, 1, 1), 1.9, 0), ((1, 1, 3), 2, 0), ((1, 1, 3), 6, 1)):
        metrics = LesionMetrics(tolerance_mm=tolerance)
        metrics.update(values, mask, spacing)
        assert metrics.compute()["froc_score"] == expected


def test_no_candidate_finds_nothing_and_their_number_is_limited() -> None:
    anomaly_map, mask = draw_volume(1)
    metrics = LesionMetrics(radius_mm=1, max_candidates=4)
    metrics.update(np.zeros(mask.shape), mask, MM)
    assert metrics.compute()["froc_score"] == metrics.compute()["n_candidates"] == 0
    metrics.update(anomaly_map, mask, MM)
    assert metrics.compute()["n_candidates"] == 4


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="radius_mm has to be positive and finite, got 0"):
        LesionMetrics(radius_mm=0)
    with pytest.raises(ValueError, match="tolerance_mm has to be finite and at least 0, got -1"):
        LesionMetrics(tolerance_mm=-1)
    with pytest.raises(ValueError, match="max_candidates has to be at least 1, got 0"):
        LesionMetrics(max_candidates=0)
    anomaly_map, mask = draw_volume(1)
    with pytest.raises(ValueError, match=r"spacing_mm has to be 3 positive numbers, .* got \[1.0, 1.0\]"):
        LesionMetrics().update(anomaly_map, mask, (1, 1))
    with pytest.raises(ValueError, match=r"spacing_mm has to be 3 positive numbers, .* got \[1.0, 0.0, 1.0\]"):
        LesionMetrics().update(anomaly_map, mask, (1, 0, 1))
    with pytest.raises(ValueError, match=r"radius_mm has to reach .* but 5.0 is less than each .* raise radius_mm"):
        LesionMetrics().update(anomaly_map, mask, (6, 6, 6))
    with pytest.raises(ValueError, match="region has to be nonzero somewhere"):
        LesionMetrics().update(anomaly_map, mask, MM, region=mask * 0)

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from metrics.drawn import MM, draw_volume
from scipy import ndimage

from aeflow_monai.metrics.candidates import find_candidates

Array = npt.NDArray[Any]


def plain_candidates(values: Array, spacing: tuple[float, ...], radius: float) -> set[tuple[int, ...]]:
    half = [int(radius / s) for s in spacing]
    grid = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1)
    ball = np.linalg.norm(grid * spacing, axis=-1) <= radius
    peaks = values == ndimage.maximum_filter(values, footprint=ball, mode="nearest")
    return set(map(tuple, np.argwhere(peaks & (values > np.median(values))).tolist()))


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 3), (2, 0.7, 6), (1, 1)])
@pytest.mark.parametrize("radius", [2.0, 5.0])
def test_candidates_are_the_maxima_of_a_ball(spacing: tuple[float, ...], radius: float) -> None:
    values = draw_volume(0, shape=(24, 22, 20)[: len(spacing)])[0]
    found = find_candidates(values, None, np.asarray(spacing, float), radius)
    assert set(map(tuple, found.tolist())) == plain_candidates(values, spacing, radius)
    assert (np.diff(values[tuple(found.T)]) <= 0).all()
    # as NIfTI volumes lie in memory
    np.testing.assert_array_equal(
        find_candidates(np.asfortranarray(values), None, np.asarray(spacing, float), radius), found
    )


def test_each_plateau_has_one_candidate() -> None:
    values = np.round(draw_volume(0)[0])
    peaks = np.zeros(values.shape, bool)
    peaks[tuple(np.array(sorted(plain_candidates(values, MM, 2.0))).T)] = True
    plateaus, n = ndimage.label(peaks, np.ones((3, 3, 3)))
    found = find_candidates(values, None, np.ones(3), 2.0)
    assert sorted(plateaus[tuple(found.T)]) == list(range(1, n + 1))
    assert n < peaks.sum()


def test_a_plateau_is_one_candidate_at_its_centre() -> None:
    values = np.zeros((30, 30, 30), np.float32)
    values[5:10, 5:10, 5:10] = 2
    values[20, 20:22, 20] = 1
    found = find_candidates(values, None, np.ones(3), 5.0).tolist()
    assert found == [[7, 7, 7], [20, 20, 20]]
    assert len(find_candidates(np.ones((9, 9, 9), np.float32), None, np.ones(3), 5.0)) == 0


def test_candidates_stay_in_the_region() -> None:
    values = draw_volume(0)[0]
    inside = np.zeros(values.shape, bool)
    inside[5:15, 5:15] = True
    found = find_candidates(values, inside, np.ones(3), 3.0)
    assert len(found)
    assert inside[tuple(found.T)].all()
    assert (values[tuple(found.T)] > np.median(values[inside])).all()
    outside_moved = np.where(inside, values, values + 100)
    np.testing.assert_array_equal(find_candidates(outside_moved, inside, np.ones(3), 3.0), found)

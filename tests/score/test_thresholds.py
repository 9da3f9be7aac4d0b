import math

import numpy as np
import pytest
import torch
from score.normals import raised

from aeflow_monai.score.score import Score
from aeflow_monai.score.thresholds import (
    patients_needed,
    require_specificity,
    set_thresholds,
    specificity_range,
    threshold_rank,
    upper_threshold,
)


class TestUpperThreshold:
    @pytest.mark.parametrize(
        ("n", "specificity", "rank"),
        [(99, 0.95, 95), (100, 0.95, 96), (19, 0.95, 19), (18, 0.95, 18), (1, 0.95, 1), (9, 0.5, 5), (10, 0.5, 6)],
    )
    def test_order_statistic_by_hand(self, n: int, specificity: float, rank: int) -> None:
        scores = torch.randperm(n, generator=torch.Generator().manual_seed(0)) + 1.0  # 1 to n
        assert upper_threshold(scores, specificity) == rank
        assert upper_threshold(scores.tolist(), specificity) == rank

    @pytest.mark.parametrize(("n", "specificity"), [(19, 0.95), (25, 0.9), (40, 0.8), (120, 0.95)])
    @pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "exponential"])
    def test_new_normals_exceed_it_as_seldom_as_expected(self, n: int, specificity: float, draw: str) -> None:
        generator = np.random.default_rng(0)
        trials = 4000
        held_out = getattr(generator, draw)(size=(trials, n))
        new = getattr(generator, draw)(size=trials)
        thresholds = np.array([upper_threshold(scores.tolist(), specificity) for scores in held_out])
        exceedance = (new > thresholds).mean()
        slack = 4 * math.sqrt(specificity * (1 - specificity) / trials)
        assert exceedance <= 1 - specificity + slack
        assert exceedance >= 1 - specificity - 1 / (n + 1) - slack  # and no more careful than it has to be
        assert exceedance == pytest.approx(1 - threshold_rank(n, specificity) / (n + 1), abs=slack)

    @pytest.mark.parametrize("specificity", [0.0, 1.0, -0.5, 95.0, float("nan")])
    def test_specificity_out_of_range_is_named(self, specificity: float) -> None:
        with pytest.raises(ValueError, match=rf"specificity has to be in \(0, 1\), as 0.95; got {specificity}"):
            upper_threshold([1.0], specificity)

    def test_no_scores_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="needs the scores of held-out normals; got none"):
            upper_threshold([], 0.95)


@pytest.mark.parametrize("specificity", [0.5, 0.6, 0.75, 0.8, 0.9, 0.95, 0.99])
def test_patients_needed_are_the_fewest_that_keep_a_specificity(specificity: float) -> None:
    n = patients_needed(specificity)
    assert threshold_rank(n, specificity) / (n + 1) >= specificity - 1e-9
    if n > 1:
        assert threshold_rank(n - 1, specificity) / n < specificity


@pytest.mark.parametrize("specificity", [0.0, 1.0, float("nan")])
def test_specificity_is_refused_before_anything_is_computed(specificity: float) -> None:
    require_specificity(0.5)
    with pytest.raises(ValueError, match=rf"has to be in \(0, 1\), as 0.95; got {specificity}"):
        require_specificity(specificity)


@pytest.mark.parametrize(("n", "specificity"), [(8, 0.95), (40, 0.9)])
def test_the_specificity_of_nine_of_ten_draws_lies_in_its_range(n: int, specificity: float) -> None:
    rank = threshold_rank(n, specificity)
    low, high = specificity_range(rank, n)
    # of uniform scores the share of new ones below a threshold is the threshold
    drawn = torch.rand(20_000, n, generator=torch.Generator().manual_seed(0)).sort(dim=1).values[:, rank - 1]
    assert float((drawn < low).float().mean()) == pytest.approx(0.05, abs=0.005)
    assert float((drawn > high).float().mean()) == pytest.approx(0.05, abs=0.005)


def test_set_thresholds_ranks_the_case_threshold_among_patients() -> None:
    score = Score()
    # 9 cases of 4 patients
    set_thresholds(score, range(9), torch.arange(19.0), [0.5, 0.25], patients="aaabbbccd", specificity=0.5)
    assert score.thresholds == pytest.approx(
        {"case_threshold": raised(4), "slice_threshold": raised(9), "map_threshold": raised(0.5)}
    )
    assert score.case_rank.tolist() == [3, 4]
    assert score.expected_specificity == 3 / 5
    assert score.held_out.n == 4


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("mean", [-3.0, 0.0, 3.0])
def test_a_held_out_normal_that_is_scored_again_is_not_above_its_own_score(mean: float, scale: float) -> None:
    score = Score()
    scores = [scale * (mean + number % 5) for number in range(10)]  # each twice
    set_thresholds(score, scores, scores, scores, patients="abcdefghij", specificity=0.95)
    for each in scores:
        again = each + 4e-6 * max(1, abs(each))  # as another runtime rounds
        assert all(again <= threshold for threshold in score.thresholds.values())
        assert score.held_out.p_value(again) == score.held_out.p_value(each)


@pytest.mark.parametrize("outlier", [1e5, math.inf])
def test_a_score_far_above_the_threshold_does_not_move_it(outlier: float) -> None:
    score, scores = Score().double(), [number / 10 for number in range(39)]
    patients = [str(number) for number in range(40)]
    set_thresholds(score, [*scores, outlier], [*scores, outlier], [*scores, outlier], patients, specificity=0.95)
    for threshold in score.thresholds.values():
        assert threshold == pytest.approx(3.8 * (1 + 1e-5), abs=1e-9)  # the 39th of 40
    assert score.held_out.p_value(3.75) == pytest.approx(3 / 41)

import math

import pytest
import torch

from aeflow_monai.score.held_out import HeldOutScores
from aeflow_monai.score.score import Score
from aeflow_monai.score.thresholds import set_thresholds


@pytest.mark.parametrize(
    ("score", "p_value"),
    [(-9.0, 1.0), (1.0, 1.0), (1.5, 4 / 5), (2.0, 4 / 5), (4.0, 2 / 5), (4.5, 1 / 5), (9.0, 1 / 5)],
)
def test_scores_at_or_above_count(score: float, p_value: float) -> None:
    """By eye: 1, 2, 3 and 4 are held out."""
    held_out = HeldOutScores()
    held_out.keep([3.0, 1.0, 4.0, 2.0], ["c", "a", "d", "b"])
    assert held_out.p_value(score) == pytest.approx(p_value)
    assert held_out.scores.tolist() == [1, 2, 3, 4]


def test_cases_of_one_patient_count_as_one() -> None:
    held_out = HeldOutScores()
    held_out.keep([5.0, 1.0, 3.0], ["one", "one", "other"])
    assert held_out.n == 2
    assert held_out.p_value(4.0) == pytest.approx((1 + 1 / 2) / 3)
    assert held_out.p_value(3.0) == pytest.approx((1 + 3 / 2) / 3)


def test_nothing_is_known_before_a_calibration() -> None:
    assert HeldOutScores().n == 0
    assert math.isnan(HeldOutScores().p_value(1.0))
    verdict = Score().verdict({"axial": torch.tensor([1.0])})
    assert math.isnan(verdict["p_value"])
    assert verdict["n_held_out"] == 0


def test_new_normals_rarely_have_a_small_p_value() -> None:
    """The law of conformal p-values: of new normals a fraction of at most alpha has one of alpha or less."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        scores = torch.randn(20, generator=generator).tolist()
        held_out = HeldOutScores()
        held_out.keep(scores[:19], [str(number) for number in range(19)])
        found.append(held_out.p_value(scores[19]))
    for alpha in (0.05, 0.25, 0.5):
        assert sum(p <= alpha for p in found) / 200 == pytest.approx(alpha, abs=0.08)


@pytest.mark.parametrize("n", [19, 40, 99])
def test_above_the_threshold_is_a_p_value_of_at_most_one_minus_the_specificity(n: int) -> None:
    score, cases = Score(), torch.randn(n, generator=torch.Generator().manual_seed(n)).tolist()
    set_thresholds(score, cases, cases, cases, [str(number) for number in range(n)], specificity=0.95)
    threshold = score.thresholds["case_threshold"]
    for each in (*score.held_out.scores.tolist(), threshold + 1e-3, threshold - 1e-3, 9.0, -9.0):
        assert (each > threshold) == (score.held_out.p_value(each) <= 0.05 + 1e-9)


def test_a_state_brings_its_number_of_cases() -> None:
    kept, loaded = Score().double(), Score()
    kept.held_out.keep([1.0, 2.0], ["a", "b"])
    loaded.held_out.keep([7.0], ["z"])
    loaded.load_state_dict(kept.state_dict())
    assert loaded.held_out.scores.tolist() == [1, 2]
    assert loaded.held_out.scores.dtype == torch.float32
    loaded.load_state_dict(Score().state_dict())
    assert loaded.held_out.n == 0

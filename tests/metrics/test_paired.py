"""Two models on the same cases: sign, interval and p-value of their difference."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from aeflow_monai.metrics import paired_report

LABELS = [0] * 30 + [1] * 30


def scores_of(separation: float, seed: int) -> list[float]:
    """Scores of a model, with ties."""
    noise = np.random.default_rng(seed).normal(size=len(LABELS))
    return [float(score) for score in np.round(noise + separation * np.array(LABELS), 1)]


def test_auroc_is_that_of_scikit_learn() -> None:
    first, second = scores_of(0.5, seed=0), scores_of(2.0, seed=1)
    report = paired_report(LABELS, first, second)
    expected = [roc_auc_score(LABELS, scores) for scores in (first, second)]
    assert report["auroc"] == pytest.approx(expected)
    assert report["difference"] == pytest.approx(expected[1] - expected[0])
    assert (report["n"], report["n_normal"], report["n_abnormal"]) == (60, 30, 30)


def test_a_better_second_model_has_a_positive_difference() -> None:
    worse, better = scores_of(0.0, seed=0), scores_of(3.0, seed=1)
    report, turned = paired_report(LABELS, worse, better), paired_report(LABELS, better, worse)
    low, high = report["difference_ci95"]
    assert 0 < low < report["difference"] < high
    assert turned["difference_ci95"] == pytest.approx([-high, -low])
    assert report["p_value"] == turned["p_value"] == pytest.approx(2 / 2001)  # the smallest there is


def test_the_same_scores_do_not_differ() -> None:
    scores = scores_of(1.0, seed=0)
    report = paired_report(LABELS, scores, scores)
    assert (report["difference"], report["difference_ci95"], report["p_value"]) == (0.0, [0.0, 0.0], 1.0)


def test_models_of_like_worth_have_a_large_p_value() -> None:
    assert paired_report(LABELS, scores_of(1.0, seed=2), scores_of(1.0, seed=3))["p_value"] > 0.05


@pytest.mark.parametrize(
    ("labels", "first", "n_bootstrap"),
    [([0, 0], [1.0, 2.0], 10), ([0, 1], [1.0], 10), ([0, 1], [1.0, 2.0], 0)],
    ids=["one class", "lengths", "no resamples"],
)
def test_what_cannot_be_compared_is_refused(labels: list[int], first: list[float], n_bootstrap: int) -> None:
    with pytest.raises(ValueError, match="Expected"):
        paired_report(labels, first, first, n_bootstrap)

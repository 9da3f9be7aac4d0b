from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from aeflow_monai.metrics import slice_report

Array = npt.NDArray[Any]


def draw_slices(seed: int, n_cases: int = 30, n_slices: int = 20, spread: float = 1.0) -> tuple[Array, Array, Array]:
    """Slices whose scores share a case's own shift; every second case has a lesion in half of its slices."""
    generator = np.random.default_rng(seed)
    cases = np.repeat(np.arange(n_cases), n_slices)
    labels = (np.arange(len(cases)) % n_slices < n_slices // 2) & (cases % 2 == 0)
    return (
        labels.astype(int),
        generator.normal(size=len(cases)) + labels + spread * generator.normal(size=n_cases)[cases],
        cases,
    )


def test_slices_equal_sklearn_and_their_interval_draws_cases() -> None:
    labels, scores, cases = draw_slices(0)
    report = slice_report(labels, scores, cases)
    assert report["slice_auroc"] == roc_auc_score(labels, scores)
    assert report["slice_average_precision"] == average_precision_score(labels, scores)
    assert (report["n_slices"], report["n_abnormal_slices"]) == (600, 150)
    assert (report["n_cases"], report["n_abnormal_cases"]) == (30, 15)
    for name in ("slice_auroc", "slice_average_precision"):
        low, high = report[f"{name}_ci95"]
        assert low < report[name] < high
    # slices of a case share its shift: drawn one by one the interval would be too narrow
    alone = slice_report(labels, scores, np.arange(len(labels)))
    assert np.diff(report["slice_auroc_ci95"]) > 1.5 * np.diff(alone["slice_auroc_ci95"])
    assert slice_report(labels, scores, cases) == report
    assert slice_report(labels, scores, cases, seed=1)["slice_auroc_ci95"] != report["slice_auroc_ci95"]
    named = slice_report(labels, scores, [f"patient {case:02d}" for case in cases])
    assert named == report


def test_copied_slices_narrow_nothing() -> None:
    labels, scores, cases = draw_slices(1, n_slices=4)
    once = slice_report(labels, scores, cases)
    tenfold = slice_report(*(np.repeat(x, 10) for x in (labels, scores, cases)))
    assert tenfold["slice_auroc_ci95"] == pytest.approx(once["slice_auroc_ci95"])


def test_abnormal_cases_alone_are_enough() -> None:
    # the normal slice is one of case b's; draws of case a alone have none
    report = slice_report([1, 1, 0, 1], [1, 2, 0, 3], list("aabb"), n_bootstrap=50)
    assert report["slice_auroc_ci95"] == [1, 1]
    assert report["n_abnormal_cases"] == 2


def test_wrong_slices_are_named() -> None:
    with pytest.raises(ValueError, match=r"cases have to be of shape \(2,\), one for each label, got \(3,\)"):
        slice_report([0, 1], [0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"at least 2 cases .* all 2 belong to 'a'"):
        slice_report([0, 1], [0, 1], ["a", "a"])
    with pytest.raises(ValueError, match="n_bootstrap has to be at least 1, got 0"):
        slice_report([0, 1], [0, 1], [0, 1], n_bootstrap=0)
    with pytest.raises(ValueError, match=r"scores have to be finite"):
        slice_report([0, 1], [0, np.nan], [0, 1])
    with pytest.raises(ValueError, match=r"both classes"):
        slice_report([0, 0], [0, 1], [0, 1])

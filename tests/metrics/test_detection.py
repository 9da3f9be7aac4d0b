import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from aeflow_monai.metrics.baselines import intensity_statistics
from aeflow_monai.metrics.bootstrap import STATISTICS, _statistics
from aeflow_monai.metrics.detection import detection_report, expected_passing, format_report

Array = npt.NDArray[Any]


def draw_case(seed: int, n: int = 200, step: float = 0.0) -> tuple[Array, Array]:
    """Overlapping scores of n cases, rounded to a step so that many are equal."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % 3 == 0).astype(int)
    scores = generator.normal(size=n) + labels
    return labels, np.round(scores / step) * step if step else scores


@pytest.mark.parametrize("step", [0.0, 0.1, 1.0, 100.0])
def test_fast_statistics_equal_sklearn_with_and_without_ties(step: float) -> None:
    for seed in range(5):
        labels, scores = draw_case(seed, step=step)
        threshold = np.median(scores)
        distinct, ranks = np.unique(scores, return_inverse=True)
        counts = [np.bincount(ranks[labels == label], minlength=len(distinct)) for label in (0, 1)]
        fast = _statistics(*counts, int(np.searchsorted(distinct, threshold, side="right")))
        report = detection_report(labels, scores, threshold, n_bootstrap=1)
        assert dict(zip(STATISTICS, fast, strict=True)) == pytest.approx({k: report[k] for k in STATISTICS})
        assert report["auroc"] == roc_auc_score(labels, scores)
        assert report["average_precision"] == average_precision_score(labels, scores)


def test_ranks_alone_decide() -> None:
    labels, scores = draw_case(0)
    for transform in (np.exp, lambda x: 1e-6 * x**3 - 7, np.tanh):
        plain = detection_report(labels, scores, 0.5, n_bootstrap=50)
        bent = detection_report(labels, transform(scores), transform(np.float64(0.5)), n_bootstrap=50)
        for name in (*STATISTICS, *(f"{name}_ci95" for name in STATISTICS), "oracle_best_f1"):
            assert bent[name] == pytest.approx(plain[name])


def test_perfect_scores_reach_one_everywhere() -> None:
    report = detection_report([0, 0, 0, 1, 1], [1, 2, 3, 4, 5], threshold=3)
    for name in STATISTICS:
        assert report[name] == 1
        low, high = report[f"{name}_ci95"]
        assert (0.3 < low < 0.7, high) == (True, pytest.approx(1))  # of so few cases much is possible
    assert report["oracle_best_f1"] == 1


def test_the_interval_of_a_fraction_without_exception_is_wilsons() -> None:
    report = detection_report([0] * 19 + [1] * 10, [0.0] * 19 + [-1.0] * 10, threshold=0.5)
    assert report["specificity"] == 1
    assert report["specificity_ci95"] == pytest.approx([19 / (19 + 1.959964**2), 1], abs=1e-6)
    assert report["sensitivity_ci95"] == pytest.approx([0, 1 - 10 / (10 + 1.959964**2)], abs=1e-6)
    assert report["auroc_ci95"] == pytest.approx([0, 1 - 10 / (10 + 1.959964**2)], abs=1e-6)


def test_constant_and_random_scores_are_chance() -> None:
    labels, _ = draw_case(0, n=3000)
    assert detection_report(labels, np.ones(3000), 0, n_bootstrap=10)["auroc"] == 0.5
    report = detection_report(labels, np.random.default_rng(1).normal(size=3000), 0, n_bootstrap=200)
    low, high = report["auroc_ci95"]
    assert low < 0.5 < high
    assert high - low < 0.06


def test_interval_holds_its_estimate_and_narrows_with_cases() -> None:
    widths = []
    for n in (60, 240, 960):
        report = detection_report(*draw_case(3, n=n), threshold=0.5)
        for name in STATISTICS:
            low, high = report[f"{name}_ci95"]
            assert 0 <= low <= report[name] <= high <= 1
        widths.append(np.diff(report["auroc_ci95"])[0])
    assert widths[0] > widths[1] > widths[2]


def test_interval_covers_the_true_auroc() -> None:
    # Of two normals one standard deviation apart, the AUROC is Phi(1 / sqrt(2)).
    reports = [detection_report(*draw_case(seed), threshold=0, n_bootstrap=200) for seed in range(60)]
    covered = [low <= 0.76025 <= high for low, high in (report["auroc_ci95"] for report in reports)]
    assert 0.88 <= np.mean(covered) <= 1


def test_a_score_equal_to_the_threshold_is_normal() -> None:
    report = detection_report([0, 1], [0.5, 0.5], threshold=0.5, n_bootstrap=1)
    assert (report["sensitivity"], report["specificity"], report["f1"]) == (0, 1, 0)
    report = detection_report([0, 1], [0.5, 0.5], threshold=0.499, n_bootstrap=1)
    assert (report["sensitivity"], report["specificity"]) == (1, 0)


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_no_threshold_beats_the_oracle_and_the_oracle_reaches_itself(step: float) -> None:
    labels, scores = draw_case(5, step=step)
    best = detection_report(labels, scores, 0, n_bootstrap=1)
    for threshold in np.linspace(scores.min() - 1, scores.max() + 1, 50):
        assert best["oracle_best_f1"] >= detection_report(labels, scores, threshold, n_bootstrap=1)["f1"]
    again = detection_report(labels, scores, best["oracle_threshold"], n_bootstrap=1)
    assert again["f1"] == pytest.approx(best["oracle_best_f1"])


def test_calling_all_abnormal_has_the_f1_of_the_formula() -> None:
    for n_normal, n_abnormal in ((1, 1), (9, 1), (234, 390)):
        labels = [0] * n_normal + [1] * n_abnormal
        report = detection_report(labels, np.arange(len(labels)), threshold=-1, n_bootstrap=1)
        share = n_abnormal / (n_normal + n_abnormal)
        assert report["all_abnormal_f1"] == pytest.approx(2 * share / (1 + share))
        assert report["all_abnormal_f1"] == report["f1"] == f1_score(labels, np.ones(len(labels)))


@pytest.mark.parametrize(
    ("rank", "contradicted"), [((95, 99), True), ((9, 9), False), ((80, 99), False), ((4, 4), False)]
)
def test_normals_that_exceed_the_threshold_too_often_are_reported(rank: tuple[int, int], contradicted: bool) -> None:
    labels, scores = [0] * 100 + [1] * 100, [*range(100), *range(50, 150)]
    report = detection_report(labels, scores, 79, calibrated_rank=rank)
    assert report["specificity"] == 0.8
    expected = rank[0] / (rank[1] + 1)
    assert (report["expected_specificity"], report["is_specificity_contradicted"]) == (expected, contradicted)
    text = format_report(report)
    assert f"(expected: {expected:.3f})" in text
    note = text.splitlines()[-1]
    low, high = report["specificity_ci95"]
    assert note.startswith(
        f"80 of 100 normal cases passed: a specificity of 0.800 (95 % interval {low:.3f} to {high:.3f}), where "
        f"{expected:.3f} was expected. "
    )
    assert "{} to {} pass".format(*report["expected_passing_range"]) in note
    assert ("calibrate the model" in note) == contradicted
    assert ("neither contradicts nor confirms what was expected" in note) == (not contradicted)


@pytest.mark.parametrize("n_calibrated", [4, 19, 99])
@pytest.mark.parametrize("n_normal", [1, 20, 200])
def test_normals_of_the_same_kind_seldom_exceed_the_threshold_too_often(n_calibrated: int, n_normal: int) -> None:
    generator, rank = np.random.default_rng(0), min(math.ceil((n_calibrated + 1) * 0.95), n_calibrated)
    thresholds = np.sort(generator.normal(size=(400, n_calibrated)))[:, rank - 1]
    exceeding = (generator.normal(size=(400, n_normal)) > thresholds[:, None]).sum(axis=1)
    least, most = expected_passing(n_normal, (rank, n_calibrated))
    assert np.mean(n_normal - exceeding >= least) >= 0.95
    assert np.mean(n_normal - exceeding <= most) >= 0.95


@pytest.mark.parametrize(("by", "said"), [(2.0, "score higher than those"), (-2.0, "score lower than those"), (0, "")])
def test_normals_that_score_otherwise_than_those_of_the_threshold_are_told(by: float, said: str) -> None:
    generator = np.random.default_rng(0)
    held_out, normal = np.sort(generator.normal(size=8)), generator.normal(size=40) + by
    scores, threshold = [*normal, *generator.normal(3, size=40)], held_out[-1] + 3  # which all normal cases pass
    options = {"calibrated_rank": (8, 8), "calibrated_scores": held_out.tolist(), "n_bootstrap": 10}
    report = detection_report([0] * 40 + [1] * 40, scores, threshold, **options)
    assert report["is_specificity_contradicted"] is False
    assert report["is_normal_shifted"] is bool(by)
    assert (report["normal_shift_p"] < 0.001) is bool(by)
    assert (said or "neither contradicts nor confirms") in report["specificity_note"]
    assert ("Calibrate the model on normals like these" in report["specificity_note"]) is bool(by)


def test_cases_of_one_patient_are_no_shift() -> None:
    generator, n_shifted = np.random.default_rng(0), 0
    for _ in range(100):
        normal = np.repeat(generator.normal(size=10), 50) + 0.3 * generator.normal(size=500)
        scores, labels = [*normal, 9.0], [0] * 500 + [1]
        options = {"calibrated_rank": (10, 10), "calibrated_scores": generator.normal(size=10).tolist()}
        patients = [*(f"{number // 50}" for number in range(500)), "ill"]
        report = detection_report(labels, scores, 5, n_bootstrap=1, patients=patients, **options)
        n_shifted += report["is_normal_shifted"]
    assert n_shifted <= 1


def test_an_auroc_that_is_not_above_chance_is_told() -> None:
    labels = [0] * 20 + [1] * 20
    above, level, below = (
        detection_report(labels, [*range(20), *range(first, first + 20)], threshold=30, n_bootstrap=50)
        for first in (10, 0, -10)
    )
    assert above["auroc_note"] == ""
    assert "includes 0.5" in level["auroc_note"]
    assert below["auroc_note"].startswith(
        "Abnormal cases score lower than normal ones, beyond chance. Check the labels"
    )
    assert below["auroc_note"] in format_report(below)


def test_without_a_rank_nothing_is_expected() -> None:
    report = detection_report([0, 0, 1], [2, 3, 4], threshold=1)
    assert "specificity_note" not in report
    assert "expected" not in format_report(report)


def test_baselines_count_in_their_better_direction() -> None:
    labels, scores = draw_case(0)
    statistics = {"up": scores, "down": -scores, "flat": np.zeros(len(labels))}
    report = detection_report(labels, scores, 0, n_bootstrap=1, baselines=statistics)
    assert report["baselines"] == pytest.approx({"up": report["auroc"], "down": report["auroc"], "flat": 0.5})


def test_report_is_json_and_depends_on_the_seed_alone() -> None:
    labels, scores = draw_case(0)
    report = detection_report(labels, scores.astype(np.float32), np.float32(0.5), baselines={"a": scores})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert detection_report(labels, scores, 0.5) == detection_report(labels, scores, 0.5)
    other = detection_report(labels, scores, 0.5, seed=1)
    assert other["auroc_ci95"] != detection_report(labels, scores, 0.5)["auroc_ci95"]
    assert other["auroc"] == report["auroc"]


def test_text_says_what_is_an_oracle() -> None:
    labels, scores = draw_case(0)
    report = detection_report(labels, scores, 0.5, baselines={"mean intensity": scores})
    lines = format_report(report).splitlines()
    assert sum("(oracle: chosen on test labels)" in line for line in lines) == 2
    (f1,) = [line for line in lines if line.startswith("F1")]
    assert f"{report['f1']:.3f}" in f1
    assert f"(all called abnormal: {report['all_abnormal_f1']:.3f})" in f1
    assert any(line.startswith("mean intensity") for line in lines)


@pytest.mark.parametrize(
    ("labels", "scores", "threshold", "message"),
    [
        ([0, 1, 1], [1.0, 2.0], 0, r"scores have to be of shape \(3,\), one for each label, got \(2,\)"),
        (
            [0, 1, 2],
            [1.0, 2.0, 3.0],
            0,
            r"labels have to be 0 \(normal\) or 1 \(abnormal\), got .*2.* at index 2",
        ),
        ([0, 1, -1], [1.0, 2.0, 3.0], 0, r"got .*-1.* at index 2"),
        (
            [0, 0],
            [1.0, 2.0],
            0,
            r"both classes, but none of 2 cases is abnormal \(1\): give a labelled test set",
        ),
        (
            [1, 1],
            [1.0, 2.0],
            0,
            r"both classes, but none of 2 cases is normal \(0\): give a labelled test set",
        ),
        ([], [], 0, r"labels have to be of shape \(N,\) with N > 0"),
        (
            [0, 1, 1],
            [1.0, np.nan, np.nan],
            0,
            r"got 2 of 3 that are NaN or infinite, the first \(nan\) at index 1",
        ),
        (
            [0, 1, 1],
            [1.0, 2.0, np.inf],
            0,
            r"got 1 of 3 that are NaN or infinite, the first \(inf\) at index 2",
        ),
        ([0, 1], [1.0, 2.0], np.nan, "threshold has to be finite, got nan"),
    ],
)
def test_wrong_input_is_named(labels: list[int], scores: Any, threshold: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detection_report(labels, scores, threshold)


def test_wrong_baselines_and_resamples_are_named() -> None:
    with pytest.raises(ValueError, match=r"baseline 'size' have to be of shape \(2,\)"):
        detection_report([0, 1], [1, 2], 0, baselines={"size": [1]})
    with pytest.raises(ValueError, match="n_bootstrap has to be at least 1, got 0"):
        detection_report([0, 1], [1, 2], 0, n_bootstrap=0)


@pytest.mark.parametrize("n", [100, 2000, 200_000])
def test_intensity_statistics_are_those_of_numpy(n: int) -> None:
    values = np.random.default_rng(0).gamma(2.0, size=n).astype(np.float32)
    found = intensity_statistics(torch.as_tensor(values).view(1, 2, -1))
    assert found["intensity_mean"] == pytest.approx(values.mean(), rel=1e-5)
    assert found["intensity_std"] == pytest.approx(values.std(), rel=1e-5)
    assert found["intensity_p95"] == np.percentile(values, 95, method="inverted_cdf")


def test_intensity_statistics_of_one_value() -> None:
    assert intensity_statistics(torch.tensor([3.0])) == {
        "intensity_mean": 3.0,
        "intensity_std": 0.0,
        "intensity_p95": 3.0,
    }

"""What held-out normals are compared with: others, by position and by how easy they are to reconstruct."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from score.normals import EXACT, SIZE, a_score, alike, raised, scores_of, slices_of, terms_of
from score.precision import double_precision
from torch import Tensor

from aeflow_monai.score.calibration import calibrate_score
from aeflow_monai.score.position import PositionMoments, PositionNorm


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with double_precision():
        yield


def moments_of(maps: Tensor, patients: Sequence[str], grid: int = 16) -> PositionMoments:
    moments = PositionMoments(grid)
    for one, patient in zip(maps, patients, strict=True):
        moments.add(one[None], torch.ones_like(one[None]), None, patient)
    return moments


@pytest.mark.parametrize("position_normalisation", [True, False])
def test_fitted_normals_give_mean_and_deviation_by_position_and_nothing_else(position_normalisation: bool) -> None:
    of_held_out, of_fitted = alike(terms_of(2)), alike(terms_of(6, seed=1))
    held_out, fitted = slices_of(of_held_out, 2, slices_per_case=2), slices_of(of_fitted, 4, name="fitted")
    alone, together = (a_score(position_normalisation=position_normalisation) for _ in range(2))
    calibrate_score(alone, held_out)
    calibrate_score(together, held_out, fitted=fitted)
    for name in ("term_mean", "term_std", "map_std"):
        assert torch.equal(getattr(together, name), getattr(alone, name))
    # of a single held-out case places cannot be learned
    assert alone.position_norm.mean.flatten(1).std(dim=1).max() == 0
    if not position_normalisation:
        assert torch.equal(together.position_norm.mean, alone.position_norm.mean)
        return
    stack, others = (together.stack(terms, torch.ones_like(terms[:, :1]) > 0) for terms in (of_held_out, of_fitted))
    own = moments_of(stack.weighted_sum, ["held out"] * 2)
    of_others = moments_of(others.weighted_sum, [name for batch in fitted for name in batch.patients])
    expected, compared = PositionNorm(), PositionNorm()
    expected.fit([own, of_others])
    compared.fit([of_others])
    torch.testing.assert_close(together.position_norm.mean, expected.mean, **EXACT)
    torch.testing.assert_close(together.position_norm.std, expected.std, **EXACT)
    # for its threshold the case was compared with the others alone
    top_means = together.top_means(together.anomaly_map(stack, compared))
    scores = together.map_scores(top_means, torch.zeros(2))
    assert together.case_threshold.item() == pytest.approx(raised(scores.mean().item()), abs=1e-9)


def test_a_group_is_compared_with_the_others_anywhere_too() -> None:
    terms = alike(terms_of(12))
    terms = torch.stack([one.roll((11 * number, 7 * number), dims=(1, 2)) for number, one in enumerate(terms)])
    score = a_score(position_normalisation=True, ease_weight=0.0)
    calibrate_score(score, slices_of(terms, 5))
    assert len(score.position_norm.mean[0, 16].unique()) == 1
    stack, expected = score.stack(terms, torch.ones_like(terms[:, :1]) > 0), torch.zeros(12)
    for group in range(5):
        others = [i for i in range(12) if i % 5 != group]
        norm = PositionNorm()
        norm.fit([moments_of(stack.weighted_sum[others], [str(i) for i in others])], by_position=False)
        top_means = score.top_means(score.anomaly_map(stack, norm))[group::5]
        expected[group::5] = score.map_scores(top_means, torch.zeros(len(top_means)))
    assert score.case_threshold.item() == pytest.approx(raised(expected.max().item()), abs=1e-9)


@pytest.mark.parametrize("position_normalisation", [True, False])
def test_ease_of_a_patient_is_told_by_the_others(position_normalisation: bool) -> None:
    terms = terms_of(12)
    terms[11, -1] -= terms[11, -1].mean() - 2.5  # nothing but easier
    options: dict[str, Any] = {"position_normalisation": position_normalisation, "beta": 1.0}
    score, blind = a_score(**options), a_score(**options, ease_weight=0.0)
    calibrate_score(score, slices_of(terms, 5))
    calibrate_score(blind, slices_of(terms, 5))
    dissimilarity = terms[:, -1].mean(dim=(1, 2))
    others = [i for i in range(12) if i % 5 != 1]
    mean, std = dissimilarity[others].mean(), dissimilarity[others].std(correction=0)
    # the difference to a new one has the variance of both
    ease = (mean - dissimilarity[11]) / (std * math.sqrt((9 + 1) / (9 - 1)))
    assert ease > 3
    # the highest score is that of the one that is so easy, and the threshold of both is the highest
    assert score.case_threshold > blind.case_threshold
    if not position_normalisation:  # where maps are compared with the same in either way
        own = scores_of(blind, terms[11:]).slice_scores.item()
        assert score.case_threshold.item() == pytest.approx(raised(own + 2 * (ease - 1.5).item()), abs=1e-9)
    of_all = (dissimilarity.mean() - dissimilarity[11]) / (dissimilarity.std(correction=0) * math.sqrt(13 / 11))
    assert scores_of(score, terms).ease[11].item() == pytest.approx(of_all.item(), abs=1e-9)


@pytest.mark.parametrize(("n", "is_told"), [(4, False), (6, False), (7, True)])
def test_few_patients_do_not_tell_ease(n: int, is_told: bool) -> None:
    terms, score = terms_of(n), a_score()
    calibrate_score(score, slices_of(terms, 2))
    assert bool(score.dissimilarity_norm.is_known) == is_told
    assert bool(scores_of(score, terms).ease.any()) == is_told


def test_fitted_patients_count_for_ease() -> None:
    score = a_score()
    calibrate_score(score, slices_of(terms_of(4), 2), fitted=slices_of(terms_of(6, seed=1), 4, name="fitted"))
    assert score.dissimilarity_norm.is_known


def test_black_slices_do_not_tell_ease() -> None:
    terms = torch.cat([terms_of(10), torch.zeros(2, 3, SIZE, SIZE)])
    foreground = torch.arange(len(terms)).view(-1, 1, 1, 1).expand_as(terms[:, :1]) < len(terms) - 2
    alone, among_black = a_score(), a_score()
    calibrate_score(alone, slices_of(terms[:10], 5))
    calibrate_score(among_black, slices_of(terms, 5, foreground=foreground))
    for name in ("mean", "std"):
        expected = getattr(alone.dissimilarity_norm, name)
        torch.testing.assert_close(getattr(among_black.dissimilarity_norm, name), expected, **EXACT)
    assert among_black(among_black.stack(terms, foreground)).ease[10:].tolist() == [0, 0]


def test_images_of_a_patient_are_not_compared_with_each_other_and_count_as_one() -> None:
    batches = slices_of(terms_of(12), 4)
    by_patient = [batch._replace(patients=[f"{int(name[5:]) // 4}" for name in batch.patients]) for batch in batches]
    alone, grouped = a_score(position_normalisation=True), a_score(position_normalisation=True)
    calibrate_score(alone, batches, specificity=0.9)
    calibrate_score(grouped, by_patient, specificity=0.9)
    assert (alone.case_rank.tolist(), grouped.case_rank.tolist()) == ([12, 12], [3, 3])
    assert not torch.isclose(alone.case_threshold, grouped.case_threshold)

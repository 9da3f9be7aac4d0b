import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from score.precision import double_precision, rounding_error
from torch import Tensor

from aeflow_monai.geometry import Places
from aeflow_monai.score.calibration import calibrate_score
from aeflow_monai.score.normal_slices import NormalSlices
from aeflow_monai.score.score import Score
from aeflow_monai.score.stack import SliceStack
from aeflow_monai.score.tissue import is_tissue

SIZE = 16
THRESHOLDS = ("case_threshold", "slice_threshold", "map_threshold")
EVERYWHERE = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)


def a_score(n_terms: int = 3, **options: Any) -> Score:
    """With statistics and thresholds as if it were calibrated."""
    score = Score(n_terms, **options)
    score.term_mean.copy_(torch.linspace(1, 2, n_terms))
    score.term_std.copy_(torch.linspace(0.5, 3, n_terms))
    score.map_std.fill_(0.7)
    for name, value in zip(THRESHOLDS, (0.75, 1.5, 3.25), strict=True):
        score.get_buffer(name).fill_(value)
    return score


def some_terms(n: int = 2, n_terms: int = 3) -> Tensor:
    return torch.randn(n, n_terms, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def stack_of(weighted_sum: Tensor, foreground: Tensor | None = None) -> SliceStack:
    everywhere = torch.ones_like(weighted_sum) > 0
    dissimilarity = weighted_sum.new_zeros(len(weighted_sum))
    return SliceStack(weighted_sum, dissimilarity, everywhere if foreground is None else foreground, None)


def square(n: int, inside: slice) -> Tensor:
    """Foreground of n images: a square."""
    foreground = torch.zeros(n, 1, SIZE, SIZE, dtype=torch.bool)
    foreground[..., inside, inside] = True
    return foreground


@pytest.mark.parametrize("n_terms", [2, 3, 4])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@double_precision()
def test_map_is_the_stated_formula(n_terms: int, beta: float) -> None:
    score, terms, foreground = a_score(n_terms, beta=beta), some_terms(2, n_terms), square(2, slice(3, 12))
    standard = (terms - score.term_mean.view(1, -1, 1, 1)) / score.term_std.view(1, -1, 1, 1)
    flow, reconstruction = standard[:, :-1].mean(dim=1, keepdim=True), standard[:, -1:]
    weighted_sum = (beta * flow + (1 - beta) * reconstruction) / score.map_std
    stack = score.stack(terms, foreground)
    torch.testing.assert_close(stack.weighted_sum, weighted_sum, rtol=0, atol=1e-9)
    level = weighted_sum[..., 3:12, 3:12].mean(dim=(2, 3), keepdim=True)
    inside = score.anomaly_map(stack)[..., 3:12, 3:12]
    torch.testing.assert_close(inside, (weighted_sum - 0.5 * level)[..., 3:12, 3:12], rtol=0, atol=1e-9)
    assert (score.anomaly_map(stack)[~foreground] <= 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
@double_precision()
def test_published_map_is_the_published_formula(beta: float) -> None:
    score, terms = a_score(3, beta=beta, published=True), some_terms()
    stack = score.stack(terms, square(2, slice(3, 12)), Places(["axial"] * 2, torch.tensor([0.0, 0.1])))
    minus_ssim = terms[:, -1:] - 1
    expected = beta * terms[:, :-1].mean(dim=1, keepdim=True) + (1 - beta) * minus_ssim
    torch.testing.assert_close(score.anomaly_map(stack), expected, rtol=0, atol=1e-9)
    assert score.blurred(stack) is stack


@double_precision()
def test_a_single_term_has_the_whole_weight_and_no_reconstruction() -> None:
    score, terms = a_score(1, beta=0.2, level_weight=1.0), some_terms(3, 1)
    stack = score.stack(terms, EVERYWHERE.expand(3, -1, -1, -1))
    torch.testing.assert_close(score.anomaly_map(stack), (terms - 1) / 0.5 / 0.7, rtol=0, atol=1e-9)
    assert stack.dissimilarity.tolist() == [0, 0, 0]
    assert score(stack).ease.tolist() == [0, 0, 0]


def maps_of_another_method(n: int, seed: int) -> Tensor:
    """Maps in a unit of their own, noisier on the left."""
    noise = torch.randn(n, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return 40 + (5 + torch.linspace(5, 0, SIZE)) * noise


def test_maps_of_another_method_are_calibrated_and_scored() -> None:
    score = Score(n_terms=1)
    assert not score.is_calibrated
    foreground = EVERYWHERE.expand(30, -1, -1, -1)
    names = [str(number) for number in range(30)]
    calibrate_score(score, [NormalSlices(maps_of_another_method(30, 0), foreground, names, names, None)])
    assert score.is_calibrated
    normal, abnormal = maps_of_another_method(30, 1), maps_of_another_method(30, 1)
    abnormal[:, :, 4:8, 10:14] += 60
    before, after = (score(score.stack(maps, foreground)) for maps in (normal, abnormal))
    assert before.anomaly_map.mean().item() == pytest.approx(0, abs=0.2)
    assert before.anomaly_map.std().item() == pytest.approx(1, abs=0.2)
    assert (before.slice_scores <= score.slice_threshold).float().mean() > 0.8
    assert (after.slice_scores > score.slice_threshold).all()
    assert (after.anomaly_map[:, :, 4:8, 10:14] > score.map_threshold).float().mean() > 0.9
    assert not after.ease.any()
    assert score.case_score({"axial": after.slice_scores}) > score.case_threshold


@pytest.mark.parametrize("n_terms", [1, 3])
@double_precision()
def test_score_does_not_depend_on_neighbours_or_order(n_terms: int) -> None:
    score = a_score(n_terms)
    score.dissimilarity_norm.mean.fill_(2.0)
    score.position_norm.mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    terms, foreground = some_terms(5, n_terms), some_terms(5, 1) > 0
    terms[3:], foreground[4] = 1e3 * terms[3:], False
    order = torch.tensor([3, 1, 4, 0, 2])
    together, shuffled = (score(score.stack(terms[i], foreground[i])) for i in (torch.arange(5), order))
    each = [score(score.stack(terms[i : i + 1], foreground[i : i + 1])) for i in range(5)]
    for name in together._fields:
        alone = torch.cat([getattr(one, name) for one in each])
        torch.testing.assert_close(getattr(together, name), alone, rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(getattr(shuffled, name), alone[order], rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("level_weight", [1.0, 0.25])
@double_precision()
def test_level_is_that_of_the_foreground_and_of_each_slice(level_weight: float) -> None:
    score = a_score(level_weight=level_weight)
    foreground = square(3, slice(4, 10))
    foreground[2] = False
    sums = some_terms(3, 1)
    sums[1] += 5
    score.position_norm.mean.fill_(0.5)  # the level is that of the deviation from normals
    score.position_norm.std.fill_(2.0)
    high = (sums - 0.5) / 2
    anomaly_map = score.anomaly_map(stack_of(sums, foreground))
    for one, before in zip(anomaly_map[:2, 0, 4:10, 4:10], high[:2, 0, 4:10, 4:10], strict=True):
        torch.testing.assert_close(one, before - (1 - level_weight) * before.mean(), rtol=0, atol=1e-9)
    outside = ~foreground[:2]
    torch.testing.assert_close(anomaly_map[:2][outside], high[:2][outside].clamp_max(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(anomaly_map[2], high[2], rtol=0, atol=1e-9)


def test_a_higher_level_is_a_higher_mean_however_wide_the_margins() -> None:
    score = a_score(level_weight=0.25)
    foreground = square(2, slice(4, 8))  # a sixteenth
    sums = torch.full((2, 1, SIZE, SIZE), -0.5)
    sums[1, :, 4:8, 4:8] = 4.0
    low, high = score.anomaly_map(stack_of(sums, foreground)).mean(dim=(1, 2, 3))
    assert high > low + 0.05


def test_another_norm_may_be_compared_with() -> None:
    score, stack = a_score(level_weight=1.0), stack_of(some_terms(2, 1))
    other = Score(3).position_norm
    other.mean.fill_(1.0)
    assert torch.equal(score.anomaly_map(stack, other), stack.weighted_sum - 1)
    assert torch.equal(score.anomaly_map(stack), stack.weighted_sum)
    easier = Score(3).dissimilarity_norm
    easier.mean.fill_(3.0)
    assert score.ease(stack, easier).tolist() == [3, 3]
    assert score.ease(stack).tolist() == [0, 0]


def test_blur_is_that_through_the_slices_of_a_volume() -> None:
    score = a_score(slice_sigma=0.2)
    spot = torch.zeros(5, 1, SIZE, SIZE)
    spot[2] = 1.0
    volume = stack_of(spot)._replace(places=Places(["axial"] * 5, torch.linspace(0, 1, 5)))
    blurred = score.blurred(volume).weighted_sum[:, 0, 0, 0]
    assert 0 < blurred[0] < blurred[1] < blurred[2] < 1
    assert score.blurred(volume).dissimilarity is volume.dissimilarity
    assert torch.equal(score.blurred(stack_of(spot)).weighted_sum, spot)
    assert torch.equal(a_score(slice_sigma=0.0).blurred(volume).weighted_sum, spot)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(1.0, 5.5), (0.5, 8.0), (0.25, 9.0), (0.1, 10.0), (0.001, 10.0)],  # 0.25 of ten values is three values
)
def test_fractions_by_hand(fraction: float, expected: float) -> None:
    values = torch.tensor([3.0, 10, 1, 7, 5, 2, 9, 4, 8, 6])
    score = Score(top_fractions=[fraction], case_top_fraction=fraction)
    top_means = score.top_means(torch.stack([values, -values]).view(2, 1, 2, 5))
    assert top_means.tolist() == [[pytest.approx(expected)], [pytest.approx(expected - 11)]]
    assert score.map_scores(top_means, torch.zeros(2)).tolist() == pytest.approx([expected, expected - 11])
    assert score.case_score({"coronal": values}).item() == pytest.approx(expected)
    # a skipped slice counts for nothing, not even in the number of slices
    skipped = torch.full((7,), torch.nan)
    assert score.case_score({"axial": torch.cat([skipped, values, skipped])}).item() == pytest.approx(expected)
    # each plane counts the same, however many slices it has
    planes = {"axial": values, "coronal": torch.full((50,), 20.0), "sagittal": skipped}
    assert score.case_score(planes).item() == pytest.approx((expected + 20) / 2)


def test_fractions_are_a_small_one_and_the_whole_by_default_and_smaller_of_volumes() -> None:
    score = Score()
    assert (score.top_fractions, score.case_top_fraction) == ((0.05, 1.0), 0.25)
    score.saw_volumes.fill_(1)
    assert (score.top_fractions, score.case_top_fraction) == ((0.005, 1.0), 0.15)
    published = Score(published=True)
    published.saw_volumes.fill_(1)
    assert (published.top_fractions, published.case_top_fraction) == ((0.05, 1.0), 0.25)
    earlier = Score()  # whose version had the same fractions for all
    earlier.load_state_dict({name: value for name, value in score.state_dict().items() if name != "of_mean_map"})
    assert (earlier.top_fractions, earlier.case_top_fraction) == ((0.05, 1.0), 0.25)
    given = Score(top_fractions=[0.1], case_top_fraction=1.0)
    given.saw_volumes.fill_(1)
    assert (given.top_fractions, given.case_top_fraction) == ((0.1,), 1.0)


@pytest.mark.parametrize("scores", [{}, {"axial": torch.full((3,), torch.nan)}])
def test_a_case_without_any_slice_has_no_score(scores: dict[str, Tensor]) -> None:
    assert a_score().case_score(scores).isnan()


def test_slice_score_is_the_mean_of_its_standardised_fractions() -> None:
    score = Score(top_fractions=[0.25, 1.0])
    score.fraction_mean.copy_(torch.tensor([2.0, 0.5]))
    score.fraction_std.copy_(torch.tensor([0.5, 0.25]))
    spot, haze = torch.tensor([4.0, 0.0, 0.0, 0.0]), torch.tensor([2.0, 2.0, 2.0, 2.0])
    top_means = score.top_means(torch.stack([spot, haze]).view(2, 1, 2, 2))
    expected = [((4 - 2) / 0.5 + (1 - 0.5) / 0.25) / 2, ((2 - 2) / 0.5 + (2 - 0.5) / 0.25) / 2]
    assert score.map_scores(top_means, torch.zeros(2)).tolist() == expected


def test_what_is_easier_than_normals_by_more_than_the_margin_is_added() -> None:
    score = Score(n_terms=3, top_fractions=[1.0], ease_weight=2.0)
    score.dissimilarity_norm.mean.fill_(0.5)
    score.dissimilarity_norm.std.fill_(0.1)
    stack = stack_of(torch.zeros(4, 1, 8, 8))._replace(dissimilarity=torch.tensor([0.9, 0.5, 0.36, 0.3]))
    ease = score.ease(stack)
    # mean and deviation are interpolated between two heights and four pixels
    bound = rounding_error(2 + 4 + 2, largest=1.0, deviation=0.1)
    assert ease.tolist() == pytest.approx([-4, 0, 1.4, 2], abs=bound)
    scores = score.map_scores(torch.zeros(4, 1), ease)
    assert scores.tolist() == pytest.approx([0, 0, 0, 2 * (2 - 1.5)], abs=2 * bound)
    assert torch.equal(score(stack).slice_scores, scores)
    published = Score(n_terms=3, published=True, top_fractions=[1.0], ease_weight=2.0)
    assert published.map_scores(torch.zeros(4, 1), ease).tolist() == [0, 0, 0, 0]


def test_black_slices_and_normals_of_too_few_patients_tell_no_ease() -> None:
    score, stack = Score(n_terms=3), stack_of(torch.zeros(2, 1, 8, 8))
    score.dissimilarity_norm.mean.fill_(5.0)
    foreground = stack.foreground.clone()
    foreground[1] = False
    assert score.ease(stack._replace(foreground=foreground)).tolist() == [5, 0]
    score.dissimilarity_norm.set_unknown()
    assert score.ease(stack).tolist() == [0, 0]


@double_precision()
def test_dissimilarity_is_the_mean_of_the_last_term_over_the_foreground() -> None:
    terms, foreground = some_terms(), square(2, slice(2, 9))
    foreground[1] = False
    found = a_score().stack(terms, foreground).dissimilarity
    assert found[0].item() == pytest.approx(terms[0, -1, 2:9, 2:9].mean().item(), rel=1e-9)
    assert found[1].item() == 0  # of a black slice nothing counts


@pytest.mark.parametrize("published", [True, False])
def test_forward_gives_map_score_and_ease(published: bool) -> None:
    score = a_score(published=published)
    stack = score.stack(some_terms(), square(2, slice(3, 12)))
    anomaly_map, slice_scores, ease, map_scores, global_terms = score(stack)
    assert torch.equal(anomaly_map, score.anomaly_map(stack))
    assert torch.equal(ease, score.ease(stack))
    assert torch.equal(map_scores, score.map_scores(score.top_means(anomaly_map), ease))
    assert torch.equal(slice_scores, map_scores)  # without a global term
    assert not global_terms.any()


def test_new_score_flags_nothing() -> None:
    score = Score(3)
    assert score.thresholds == dict.fromkeys(THRESHOLDS, math.inf)
    assert not score.is_calibrated
    assert math.isnan(score.expected_specificity)


def test_thresholds_and_expected_specificity_are_read_from_the_buffers() -> None:
    score = a_score()
    score.case_rank.copy_(torch.tensor([18, 19]))
    assert score.is_calibrated
    assert score.thresholds == {"case_threshold": 0.75, "slice_threshold": 1.5, "map_threshold": 3.25}
    assert score.expected_specificity == 18 / 20


def test_state_dict_carries_everything(tmp_path: Path) -> None:
    score = a_score()
    for norm in (score.position_norm, score.dissimilarity_norm):
        norm.mean.copy_(torch.randn(norm.mean.shape, generator=torch.Generator().manual_seed(1)))
        norm.std.fill_(0.3)
    score.fraction_mean.copy_(torch.tensor([1.0, 2.0]))
    score.fraction_std.copy_(torch.tensor([0.5, 4.0]))
    torch.save(score.state_dict(), tmp_path / "score.pt")
    loaded = Score(3)
    loaded.load_state_dict(torch.load(tmp_path / "score.pt", weights_only=True))
    stacks = [one.stack(some_terms(), square(2, slice(3, 12))) for one in (score, loaded)]
    for ours, theirs in zip(score(stacks[0]), loaded(stacks[1]), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.thresholds == score.thresholds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_terms": 0}, r"n_terms .* 1 or more; got 0"),
        ({"beta": 1.5}, r"beta .* in \[0, 1\]; got 1\.5"),
        ({"top_fractions": []}, r"list of one or more, as \[0\.05, 1\.0\]; got \[\]"),
        ({"top_fractions": 0.5}, r"list of one or more, as \[0\.05, 1\.0\]; got 0\.5"),
        ({"top_fractions": [0.5, 0.0]}, r"top_fractions: .* in \(0, 1\]; got 0\.0"),
        ({"case_top_fraction": 1.1}, r"case_top_fraction: .* in \(0, 1\]; got 1\.1"),
        ({"slice_sigma": -0.1}, r"slice_sigma .* 0 or more; got -0\.1"),
        ({"slice_sigma": math.inf}, r"slice_sigma .* 0 or more; got inf"),
        ({"ease_weight": -1.0}, r"ease_weight .* 0 or more; got -1\.0"),
        ({"level_weight": 0.0}, r"level_weight .* in \(0, 1\]; got 0\.0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Score(**options)


def test_tissue_has_foreground_on_all_four_sides() -> None:
    foreground = torch.rand(6, 1, 20, 12, generator=torch.Generator().manual_seed(0)) < torch.tensor(
        [0.0, 0.02, 0.05, 0.2, 0.6, 1.0]
    ).view(-1, 1, 1, 1)
    tissue = is_tissue(foreground)
    for image, found in zip(foreground[:, 0], tissue[:, 0], strict=True):
        for row, column in itertools.product(range(20), range(12)):
            sides = (image[: row + 1, column], image[row:, column], image[row, : column + 1], image[row, column:])
            expected = all(bool(side.any()) for side in sides) or not image.any()
            assert bool(found[row, column]) == expected


def test_outside_of_the_tissue_nothing_is_anomalous() -> None:
    score = Score(3, level_weight=1.0)
    foreground = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    foreground[0, :, 2:7, 2:7] = True
    foreground[0, :, 4, 4] = False  # a hole belongs to the tissue; the second image is black, and counts as it is
    found = score.anomaly_map(stack_of(torch.full((2, 1, 8, 8), 3.0), foreground))
    assert (found[0, 0, 2:7, 2:7] == 3).all()
    assert found[0].sum() == 25 * 3
    assert (found[1] == 3).all()
    assert (score.anomaly_map(stack_of(torch.full((2, 1, 8, 8), -3.0), foreground)) == -3).all()

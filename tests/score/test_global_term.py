"""The global term: distances, cross-fitting, another site, and how it joins the slice score."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from score.precision import double_precision
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from aeflow_monai.geometry import Places
from aeflow_monai.score import GlobalTerm, NormalSlices, PooledSlices, Score, calibrate_score, pooled_features
from aeflow_monai.score.term_fitting import fit_global_term

N_FEATURES = 12


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with double_precision():
        yield


def features_of(n: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Correlated features of normals, in units of their own."""
    mixing = torch.randn(N_FEATURES, N_FEATURES, generator=torch.Generator().manual_seed(99))
    values = torch.randn(n, N_FEATURES, generator=torch.Generator().manual_seed(seed))
    return ((values @ mixing + shift) * torch.linspace(1, 50, N_FEATURES)).view(n, N_FEATURES // 4, 4)


def groups_of(pooled: Tensor, name: str = "patient") -> list[dict[str, Tensor]]:
    """Five groups of patients with a slice each."""
    names = [f"{name}_{i}" for i in range(len(pooled))]
    return [{names[i]: pooled[i : i + 1] for i in range(group, len(pooled), 5)} for group in range(5)]


NOBODY: list[dict[str, Tensor]] = [{}] * 5


def normal_slices(pooled: Tensor) -> NormalSlices:
    names = [f"case_{i}" for i in range(len(pooled))]
    terms = torch.randn(len(pooled), 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return NormalSlices(terms, torch.ones_like(terms) > 0, names, names, None, pooled)


def test_pooled_features_are_means_of_quarters_and_of_wide_encoders_of_the_whole() -> None:
    stage = torch.arange(16.0).view(1, 1, 4, 4)
    assert pooled_features([stage, 10 + stage[..., :2, :2]]).tolist() == [[[2.5, 4.5, 10.5, 12.5], [10, 11, 14, 15]]]
    assert pooled_features([torch.ones(2, 1024, 4, 4)]).shape == (2, 1024, 1)


def test_distances_are_those_of_scikit_learn_in_the_unit_that_was_set() -> None:
    term, normals, others = GlobalTerm(), features_of(40), features_of(5, seed=1, shift=1.0)
    term.fit(normals)
    standard = [((some - normals.mean(0)) / normals.std(0, correction=0)).numpy() for some in (normals, others)]
    flat = [each.reshape(len(each), -1) for each in standard]
    expected = [LedoitWolf(assume_centered=True).fit(flat[0]).mahalanobis(flat[1]) ** 0.5]
    for theirs, ours in (flat, [each.mean(axis=2) for each in standard]):
        expected.append(NearestNeighbors(n_neighbors=1).fit(theirs).kneighbors(ours)[0][:, 0])
    before = term.distances(others)
    torch.testing.assert_close(before, torch.from_numpy(np.stack(expected, axis=1)), rtol=1e-4, atol=1e-4)
    term.set_unit(before)
    all_three = ((before - before.mean(0)) / before.std(0, correction=0)).sum(1)
    torch.testing.assert_close(term(others), all_three / all_three.std(correction=0))


def test_what_lies_between_two_kinds_of_normals_is_unusual() -> None:
    kinds = torch.linspace(-20, 20, 2).repeat(30)[:, None].expand(-1, N_FEATURES)
    term, normals = GlobalTerm(), features_of(60) + (kinds * torch.linspace(1, 50, N_FEATURES)).view(60, -1, 4)
    fit_global_term(term, groups_of(normals), NOBODY)
    between = features_of(60, seed=3)
    assert term(between).mean() > term(normals).mean() + 2


def test_of_many_normals_some_are_stored() -> None:
    term = GlobalTerm()
    term.fit(torch.randn(10_000, 3, 1))
    assert term.normals.shape == (4096, 3, 1)


@pytest.mark.parametrize(("channels", "parts"), [(4, 4), (8, 1), (3, 1)])
def test_a_state_says_the_same_when_it_is_loaded_also_with_channels_and_parts_joined(channels: int, parts: int) -> None:
    """Joined they were in states that did not hold both."""
    normals, others = torch.randn(2, 30, channels, parts, generator=torch.Generator().manual_seed(0))
    term = GlobalTerm()
    term.fit(normals)
    term.set_unit(term.distances(others))
    state = term.state_dict()
    for stored in (state["normals"], state["normals"].flatten(1)):
        loaded = GlobalTerm()
        loaded.fit(torch.randn(5, 3, 4))
        loaded.load_state_dict({**state, "normals": stored})
        assert loaded.normals.shape == (30, channels, parts)
        assert torch.equal(loaded(others), term(others))


@pytest.mark.parametrize("site", [False, True])
def test_a_later_calibration_on_the_same_normals_does_not_make_new_ones_unusual(site: bool) -> None:
    def wide(n: int, seed: int) -> Tensor:  # more features than normals, as in small data sets
        return torch.randn(n, 40, 4, generator=torch.Generator().manual_seed(seed))

    term, held_out = GlobalTerm(), groups_of(wide(45, 1))
    fit_global_term(term, held_out, groups_of(wide(60, 2), "trained"))
    if site:
        fit_global_term(term, groups_of(wide(30, 4) + 0.05), NOBODY)
    fit_global_term(term, held_out, NOBODY)
    assert (term(wide(1000, 3)) > 1.645).double().mean() < 0.15


def test_of_too_few_trained_patients_held_out_ones_are_fitted_too() -> None:
    term, held_out = GlobalTerm(), groups_of(features_of(20))
    for fitted in (NOBODY, groups_of(features_of(3, seed=2), "trained")):
        without = fit_global_term(term, held_out, fitted)
        assert len(term.normals) == 20 + sum(map(len, fitted))
        assert not torch.equal(without[0].mean, term.mean)
        fit_global_term(term, held_out, NOBODY)  # is no other site, but the same normals
        assert len(term.normals) == 20
        assert abs(term(features_of(500, seed=3)).mean().item()) < 0.5


def test_distances_that_are_nothing_but_rounding_make_no_unit() -> None:
    term, once = GlobalTerm(), features_of(30)
    fit_global_term(term, groups_of(once), groups_of(torch.cat([once, once])[torch.arange(60) // 2], "trained"))
    assert term(features_of(200, seed=3)).mean() < 100


def test_new_normals_are_standard_though_normals_are_hardly_more_than_features() -> None:
    term = GlobalTerm()
    without = fit_global_term(term, groups_of(features_of(10)), groups_of(features_of(20, seed=2), "trained"))
    new = term(features_of(2000, seed=3))
    assert abs(new.mean().item()) < 0.5
    assert new.std().item() == pytest.approx(1, abs=0.5)
    assert term(features_of(20, seed=2)).mean() < -0.5  # of themselves: that is why groups are left out
    of_groups = [
        own(torch.cat([*group.values()])) for own, group in zip(without, groups_of(features_of(10)), strict=True)
    ]
    assert abs(torch.cat(of_groups).mean().item()) < 0.8


def test_of_too_few_patients_nothing_is_known() -> None:
    term = GlobalTerm()
    term.fit(features_of(30))
    assert fit_global_term(term, groups_of(features_of(5)), NOBODY) == []
    assert not term.is_known


def test_features_that_are_not_finite_are_refused_and_the_score_is_as_before() -> None:
    score, pooled = Score(), features_of(12)
    pooled[3, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        calibrate_score(score, [normal_slices(pooled)])
    assert not score.global_term.is_known


def test_another_site_moves_the_term_towards_its_normals() -> None:
    term = GlobalTerm()
    fit_global_term(term, groups_of(features_of(20)), groups_of(features_of(200, seed=2), "trained"))
    trained, site = GlobalTerm(), features_of(40, seed=5, shift=4.0)
    trained.load_state_dict(term.state_dict())
    before = term(features_of(500, seed=6, shift=4.0))
    fit_global_term(term, groups_of(site), NOBODY)
    after = term(features_of(500, seed=6, shift=4.0))
    assert before.mean() > 1
    assert abs(after.mean().item()) < 0.3
    assert term(features_of(50, seed=7, shift=8.0)).mean() > 1
    assert torch.equal(term.normals[:200], trained.normals)
    assert len(term.normals) == 240
    assert torch.equal(term.fitted_whitening, trained.whitening)
    assert (int(term.n_fitted), bool(term.is_of_training)) == (200, True)


def test_what_varies_at_another_site_is_normal_there_and_the_more_so_the_more_patients_it_has() -> None:
    def varied(n: int, seed: int) -> Tensor:  # brightness, say, which hardly varies in the training
        return features_of(n, seed=seed) + 2 * features_of(n, seed=seed + 100)[:, :1, :1]

    terms = []
    for n in (8, 40):
        term = GlobalTerm()
        fit_global_term(term, groups_of(features_of(20)), groups_of(features_of(200, seed=2), "trained"))
        before = term.distances(varied(300, 6))[:, 0].mean()
        fit_global_term(term, groups_of(varied(n, 5)), NOBODY)
        terms.append(float(term.distances(varied(300, 6))[:, 0].mean() / before))
    assert terms[1] < terms[0] < 0.95


def test_a_calibration_that_takes_the_term_away_says_so(caplog: pytest.LogCaptureFixture) -> None:
    score = Score()
    calibrate_score(score, [normal_slices(features_of(12))])
    calibrate_score(score, [normal_slices(features_of(12, seed=1))])
    assert "too few patients for a global term" not in caplog.text
    calibrate_score(score, [normal_slices(features_of(5, seed=2))])
    assert "too few patients for a global term" in caplog.text
    assert not score.global_term.is_known


def test_to_calibrate_again_on_the_same_normals_changes_nothing() -> None:
    term, site = GlobalTerm(), groups_of(features_of(12, seed=5, shift=2.0))
    fit_global_term(term, groups_of(features_of(20)), groups_of(features_of(60, seed=2), "trained"))
    fitted = term.mean.clone()
    fit_global_term(term, site, NOBODY)
    once = {name: value.clone() for name, value in term.state_dict().items()}
    assert not torch.equal(term.mean, fitted)
    loaded = GlobalTerm()
    loaded.load_state_dict(once)
    for _ in range(2):
        fit_global_term(loaded, site, NOBODY)
        torch.testing.assert_close(loaded.state_dict(), once)
    assert torch.equal(loaded.fitted_mean, fitted)


def soft_maximum(of_map: float, term: float, weight: float = 3, softness: float = 4) -> float:
    counted = term if term < 1.5 else 1.5 + math.log(1 + 4 * (term - 1.5)) / 4
    return softness * math.log((math.exp(of_map / softness) + math.exp(weight * counted / softness)) / 2)


def test_slice_score_is_the_soft_maximum_of_both() -> None:
    score, of_maps, terms = Score(), torch.tensor([0.0, 9.0, -1.0]), torch.tensor([0.0, 0.0, 7.0])
    assert score.joined(of_maps, terms).tolist() == [0, 9, -1]  # nothing is known yet
    score.global_term.fit(features_of(30))
    assert score.joined(of_maps, terms).tolist() == pytest.approx(
        [soft_maximum(0, 0), soft_maximum(9, 0), soft_maximum(-1, 7)]
    )


@pytest.mark.parametrize("term", [-2.0, 1.0, 7.0])
def test_the_formula_that_is_told_gives_the_score(term: float) -> None:
    joined, counted = GlobalTerm().formula("of_map", "term").split(" with t = ")
    names = {"exp": math.exp, "log": math.log, "max": max, "min": min, "of_map": -1, "term": term}
    names["t"] = eval(counted, dict(names))
    assert eval(joined, names) == pytest.approx(soft_maximum(-1, term))


def test_maps_tell_apart_images_that_are_all_unusual_and_the_most_unusual_are_abnormal_by_themselves() -> None:
    term = GlobalTerm()
    assert term.joined(torch.tensor(1.0), torch.tensor(6.0)) < term.joined(torch.tensor(4.0), torch.tensor(4.0))
    terms = torch.tensor([0.0, 1.4, 1.6, 5.0, 30.0, 1000.0])
    assert (term.joined(torch.zeros(6), terms).diff() > 0).all()
    assert term.joined(torch.tensor(0.0), torch.tensor(30.0)) > 5


@pytest.mark.parametrize(
    ("places", "expected"), [(None, (3, 4)), (Places(["axial"] * 12, torch.linspace(0, 1, 12)), (2, 1))]
)
def test_of_volumes_the_larger_one_counts_and_of_images_both(places: Places | None, expected: tuple[int, int]) -> None:
    score, slices = Score(), normal_slices(features_of(12))._replace(places=places)
    calibrate_score(score, [slices], trained=[PooledSlices(features_of(30), [f"{i}" for i in range(30)])])
    assert (float(score.global_term.weight), float(score.global_term.softness)) == expected
    state = score.state_dict()
    calibrate_score(score, [slices._replace(places=None)])  # at another site
    assert torch.equal(score.global_term.softness, state["global_term.softness"])
    loaded = Score()
    later = ("softness", "bend", "fitted_mean", "fitted_whitening", "n_fitted")
    loaded.load_state_dict({key: value for key, value in state.items() if not key.endswith(later)})
    assert all(torch.isfinite(value).all() for key, value in loaded.state_dict().items() if "global_term" in key)
    assert float(loaded.global_term.softness) == 1  # as in a model from before
    terms = torch.tensor([0.0, 50.0])
    torch.testing.assert_close(
        loaded.joined(torch.zeros(2), terms), torch.nn.functional.softplus(expected[0] * terms) - math.log(2)
    )
    assert loaded.global_term.formula("m", "g") == f"log((exp(m) + exp({expected[0]} * g)) / 2)"


def test_case_score_joins_the_mean_of_the_terms_to_the_highest_map_scores() -> None:
    score = Score(case_top_fraction=0.25)
    score.global_term.fit(features_of(30))
    of_maps = {"axial": torch.tensor([0.0, 3.0, 1.0, torch.nan, 2.0])}
    terms = {"axial": torch.tensor([5.0, 1.0, 1.0, torch.nan, 1.0])}
    assert float(score.case_score(of_maps, terms)) == pytest.approx(soft_maximum(3, 2))
    assert float(score.case_score(of_maps)) == 3


@pytest.mark.parametrize("options", [{"global_term": False}, {"published": True}])
def test_without_the_option_scores_are_those_of_the_map(options: dict[str, bool]) -> None:
    score, plain = Score(**options), Score(**options)
    slices = normal_slices(features_of(12))
    calibrate_score(score, [slices], trained=[PooledSlices(features_of(30), [f"{i}" for i in range(30)])])
    calibrate_score(plain, [slices._replace(pooled=None)])
    assert not score.global_term.is_known
    for name, value in plain.state_dict().items():
        assert torch.equal(score.state_dict()[name], value)


def test_a_change_of_all_of_a_slice_exceeds_the_threshold_of_held_out_normals() -> None:
    score, slices = Score(), normal_slices(features_of(40))
    trained = PooledSlices(features_of(200, seed=2), [f"trained_{i}" for i in range(200)])
    calibrate_score(score, [slices], 0.9, trained=[trained])
    assert score.global_term.is_known
    strange = features_of(40, seed=8) + 8 * torch.linspace(1, 50, N_FEATURES).view(-1, 4)
    scored = [
        score(score.stack(slices.terms, slices.foreground, None, pooled)).slice_scores
        for pooled in (features_of(40, seed=9), strange)
    ]
    assert (scored[0] > score.slice_threshold).double().mean() < 0.3
    assert (scored[1] > score.slice_threshold).all()


def test_state_carries_the_term_and_a_model_from_before_has_none() -> None:
    score, loaded = Score(), Score()
    score.global_term.fit(features_of(30))
    loaded.load_state_dict(score.state_dict())
    assert torch.equal(loaded.global_term(features_of(3)), score.global_term(features_of(3)))
    before = {key: value for key, value in score.state_dict().items() if not key.startswith("global_term.")}
    loaded.load_state_dict(before)
    assert not loaded.global_term.is_known


def test_a_model_of_one_distance_scores_as_it_did() -> None:
    score, loaded = Score(), Score()
    score.global_term.fit(features_of(30))
    later = ("normals", "weight", "softness", "bend", "fitted_mean", "fitted_whitening", "n_fitted", "is_of_training")
    state = {key: value for key, value in score.state_dict().items() if key.split(".")[-1] not in later}
    state["global_term.unit"] = torch.tensor([3.0, 0.5])
    loaded.load_state_dict(state)
    others = features_of(4, seed=1)
    terms = loaded.global_term(others)
    assert torch.equal(terms, (score.global_term.distances(others)[:, 0] - 3) / 0.5)
    assert torch.equal(loaded.joined(torch.zeros(4), terms), torch.nn.functional.softplus(terms) - math.log(2))
    again = Score()
    again.load_state_dict(loaded.state_dict())
    assert torch.equal(again.global_term(others), terms)
    fit_global_term(again.global_term, groups_of(features_of(12, seed=5, shift=2.0)), NOBODY)
    assert len(again.global_term.unit) == 1
    assert abs(again.global_term(features_of(200, seed=6, shift=2.0)).mean().item()) < 0.5

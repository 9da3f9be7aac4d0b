import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from score.normals import EXACT, SIZE, a_score, alike, buffers, raised, scores_of, slices_of, terms_of
from score.precision import double_precision

from aeflow_monai.geometry import Places
from aeflow_monai.score.calibration import calibrate_score
from aeflow_monai.score.normal_slices import NormalSlices
from aeflow_monai.score.score import Score, SliceScores
from aeflow_monai.score.top_fractions import top_mean


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with double_precision():
        yield


@pytest.mark.parametrize("n_terms", [1, 3])
@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_terms_and_map_of_the_normals_become_standard(beta: float, n_terms: int) -> None:
    score, terms = a_score(n_terms, beta=beta), terms_of(n_terms=n_terms)
    calibrate_score(score, slices_of(terms, 4))
    flat = terms.transpose(0, 1).flatten(1)
    torch.testing.assert_close(score.term_mean, flat.mean(dim=1), **EXACT)
    torch.testing.assert_close(score.term_std, flat.std(dim=1, correction=0), **EXACT)
    found = scores_of(score, terms)
    assert found.anomaly_map.mean().item() == pytest.approx(0, abs=1e-9)
    assert found.anomaly_map.std(correction=0).item() == pytest.approx(1, abs=1e-9)
    means = found.anomaly_map.mean(dim=(1, 2, 3))
    torch.testing.assert_close(score.fraction_mean, means.mean()[None], **EXACT)
    torch.testing.assert_close(score.fraction_std, means.std(correction=0)[None], **EXACT)


@pytest.mark.parametrize("published", [True, False])
def test_thresholds_are_those_of_the_normals_own_scores(published: bool) -> None:
    # fractions whose mean over slices is not that over pixels, cases that are cut by the batches
    score = a_score(published=published, top_fractions=[0.05], case_top_fraction=0.4)
    terms = terms_of(12)
    calibrate_score(score, slices_of(terms, 5, slices_per_case=3), specificity=0.6)
    maps, slices, *_ = scores_of(score, terms)
    cases = [slices[i : i + 3].sort(descending=True).values[:2].mean().item() for i in range(0, 12, 3)]
    assert score.case_threshold.item() == pytest.approx(raised(sorted(cases)[3 - 1]), abs=1e-9)  # ceil(5 * 0.6)
    # the eighth, ceil(13 * 0.6)
    assert score.slice_threshold.item() == pytest.approx(raised(sorted(slices.tolist())[8 - 1]), abs=1e-9)
    peaks = maps.flatten(1).amax(dim=1)
    assert score.map_threshold.item() == pytest.approx(raised(sorted(peaks.tolist())[8 - 1]), abs=1e-9)
    assert ((maps > score.map_threshold + 1e-9).flatten(1).any(dim=1)).sum() == 12 - 8
    assert score.is_calibrated
    if published:
        assert torch.equal(score.term_mean, torch.zeros(3))
        assert torch.equal(score.term_std, torch.ones(3))
        assert torch.equal(score.fraction_mean, torch.zeros(1))


def test_planes_of_a_case_count_the_same_however_many_slices_they_have() -> None:
    score, terms = a_score(slice_sigma=0.0), terms_of(8)
    planes = ["axial", "axial", "axial", "coronal"] * 2
    heights = torch.tensor([0.0, 0.5, 1.0, 0.5] * 2)
    batches = slices_of(terms, 3, slices_per_case=4)
    for i, batch in enumerate(batches):
        part = slice(3 * i, 3 * i + 3)
        batches[i] = batch._replace(places=Places(planes[part], heights[part]))
    calibrate_score(score, batches, specificity=0.3)
    everywhere = torch.ones_like(terms[:, :1]) > 0
    scores = score(score.stack(terms, everywhere, Places(planes, heights))).slice_scores.view(2, 4)
    cases = (scores[:, :3].mean(dim=1) + scores[:, 3]) / 2
    assert score.case_threshold.item() == pytest.approx(raised(cases.min().item()), abs=1e-9)  # ceil(3 * 0.3)
    assert score.slice_threshold.item() == pytest.approx(raised(sorted(scores.flatten().tolist())[2]), abs=1e-9)


def test_fractions_of_volumes_are_smaller_and_their_units_fit() -> None:
    """Whether normals are slices of volumes is known before their top fractions are standardised."""
    terms = terms_of(12)
    of_images = [batch._replace(places=None) for batch in slices_of(terms, 4, slices_per_case=4)]
    heights = torch.linspace(0, 1, 4)
    of_volumes = [batch._replace(places=Places(["axial"] * 4, heights)) for batch in of_images]
    scores = []
    for batches in (of_images, of_volumes):
        score = Score(3, position_normalisation=False, slice_sigma=0.0, level_weight=1.0)
        calibrate_score(score, batches, specificity=0.6)
        maps = scores_of(score, terms).anomaly_map.flatten(1)
        means = torch.stack([top_mean(maps, fraction) for fraction in score.top_fractions], dim=1)
        torch.testing.assert_close(score.fraction_mean, means.mean(dim=0), rtol=0, atol=1e-6)
        scores.append(score)
    assert [score.top_fractions for score in scores] == [(0.05, 1.0), (0.005, 1.0)]
    assert scores[0].fraction_mean[0] < scores[1].fraction_mean[0]


@pytest.mark.parametrize("published", [True, False])
def test_thresholds_of_volumes_are_of_the_scores_that_these_volumes_get(published: bool) -> None:
    """With the fractions of the kind, also of the published score, whose units are not fitted."""
    terms, heights = terms_of(40), torch.linspace(0, 1, 4)
    places = Places(["axial"] * 4, heights)
    batches = [batch._replace(places=places) for batch in slices_of(terms, 4, slices_per_case=4)]
    score = Score(3, published=published, position_normalisation=False, slice_sigma=0.0, ease_weight=0.0)
    found = calibrate_score(score, batches, specificity=0.6)
    for number, batch in enumerate(batches):
        scores = score(score.stack(batch.terms, batch.foreground, places)).map_scores
        assert float(score.case_score({"axial": scores})) == pytest.approx(found[f"case_{number}"], abs=1e-5)


def test_planes_that_cannot_be_put_together_are_refused() -> None:
    places = Places(["axial"] * 4, torch.linspace(0, 1, 4))
    batches = [batch._replace(places=places) for batch in slices_of(terms_of(8), 4, slices_per_case=4)]
    score = a_score()
    before = buffers(score)
    with pytest.raises(ValueError, match=r"planes of case_0 cannot be put together: of each the slices have to follow"):
        calibrate_score(score, batches, over_planes=lambda maps, grids: {})
    assert all(torch.equal(value, before[name]) for name, value in buffers(score).items())


def test_images_of_a_case_have_a_score_each() -> None:
    score, terms = a_score(), terms_of(6)
    (batch,) = slices_of(terms, 6, slices_per_case=3)
    calibrate_score(score, [batch._replace(files=["a", "a", "b", "c", "c", "d"])], specificity=0.75)
    slices = scores_of(score, terms).slice_scores
    images = [slices[:2].mean(), slices[2], slices[3:5].mean(), slices[5]]
    # the fourth, ceil(5 * 0.75)
    assert score.case_threshold.item() == pytest.approx(raised(max(images).item()), abs=1e-9)
    assert score.case_rank.tolist() == [2, 2]
    # p-values come from all four, of two patients
    torch.testing.assert_close(score.held_out.scores, torch.stack(images).sort().values, **EXACT)
    assert score.held_out.weights.tolist() == [0.5] * 4
    verdict = score.verdict({"axial": slices[2:3]})
    at_or_above = sum(image.item() >= verdict["anomaly_score"] for image in images)
    assert verdict["p_value"] == pytest.approx((1 + at_or_above / 2) / 3)
    assert verdict["n_held_out"] == 2


def test_nothing_depends_on_the_batch_size() -> None:
    terms, found = terms_of(9), []
    for batch_size in (1, 4, 9):
        score = a_score(position_normalisation=True, level_weight=0.5)
        calibrate_score(score, slices_of(terms, batch_size, slices_per_case=2), specificity=0.5)
        found.append(buffers(score))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, **EXACT)


def test_an_empty_background_does_not_count() -> None:
    terms, found = terms_of(8), []
    foreground = torch.zeros(8, 1, SIZE, SIZE, dtype=torch.bool)
    foreground[..., 8:24, 4:20] = True
    for background in (0.0, -500.0):
        score = a_score(position_normalisation=True, top_fractions=[0.05])
        calibrate_score(score, slices_of(torch.where(foreground, terms, background), 3, foreground=foreground))
        found.append(buffers(score))
        inside = score(score.stack(terms, foreground)).anomaly_map[foreground]
        assert inside.mean().item() == pytest.approx(0, abs=0.1)
        assert inside.std().item() == pytest.approx(1, abs=0.2)
    for name in ("term_mean", "term_std", "map_std", "position_norm.mean", "position_norm.std"):
        torch.testing.assert_close(found[0][name], found[1][name], **EXACT)


def test_empty_images_among_others_do_not_count_however_they_are_batched() -> None:
    terms = torch.cat([terms_of(4), torch.zeros(2, 3, SIZE, SIZE)])
    foreground = torch.arange(len(terms)).view(-1, 1, 1, 1).expand_as(terms[:, :1]) < len(terms) - 2
    found = []
    for n, batch_size in ((4, 2), (6, 2), (6, 3)):
        score = a_score()
        calibrate_score(score, slices_of(terms[:n], batch_size, foreground=foreground[:n]))
        found.append(buffers(score))
    for other in found[1:]:
        for name in ("term_mean", "term_std", "map_std", "position_norm.mean", "position_norm.std"):
            torch.testing.assert_close(other[name], found[0][name], **EXACT)


def test_only_empty_images_calibrate_to_finite_numbers() -> None:
    score = a_score()
    black = torch.zeros(3, 1, SIZE, SIZE, dtype=torch.bool)
    calibrate_score(score, slices_of(torch.full((3, 3, SIZE, SIZE), 0.3), 2, foreground=black))
    assert all(torch.isfinite(value).all() for value in buffers(score).values())
    assert (score.term_std > 0).all()


@pytest.mark.parametrize("published", [True, False])
def test_calibrating_again_gives_the_same(published: bool) -> None:
    score = a_score(published=published, position_normalisation=True)
    calibrate_score(score, slices_of(terms_of(), 5))
    first = buffers(score)
    calibrate_score(score, slices_of(terms_of(6, seed=3), 5))  # of which nothing may be left
    calibrate_score(score, slices_of(terms_of(), 5))
    assert all(torch.equal(value, first[name]) for name, value in buffers(score).items())


def test_constant_term_keeps_its_unit() -> None:
    score, terms = a_score(), terms_of(3)
    terms[:, -1] = 0.25
    calibrate_score(score, slices_of(terms, 2))
    assert all(torch.isfinite(value).all() for value in buffers(score).values())
    assert score.term_std[-1] == 1
    assert torch.isfinite(scores_of(score, terms_of()).anomaly_map).all()


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no slices", r"held-out normal.*; got none"),
        ("diverged", r"not finite.*: the training diverged\. Lower the learning rate.*The model was not saved"),
        ("specificity", r"has to be in \(0, 1\), as 0\.95; got 1\.0"),
        ("one patient", "argument"),
        ("one name", "argument"),
        ("iterated once", "three times: give a list or a DataLoader, no generator"),
        ("fitted iterated once", "three times: give a list or a DataLoader, no generator"),
    ],
)
def test_failure_leaves_all_buffers_as_they_were(published: bool, fault: str, message: str) -> None:
    score = a_score(published=published, position_normalisation=True)
    calibrate_score(score, slices_of(terms_of(8), 2))
    before = buffers(score)
    held_out: Any = slices_of(terms_of(4, seed=5), 2)  # others, so other statistics
    fitted: Any = ()
    specificity = 0.95
    if fault == "no slices":
        held_out = []
    elif fault == "diverged":
        held_out[-1].terms[0, 0, 0, 0] = torch.nan
    elif fault == "specificity":
        specificity = 1.0
    elif fault.startswith("one"):
        names = {"patients": ["one"]} if fault == "one patient" else {"patients": ["one"], "files": ["one"]}
        held_out[-1] = held_out[-1]._replace(**names)
    elif fault == "iterated once":
        held_out = iter(held_out)
    else:
        fitted = iter(held_out)
    with pytest.raises(ValueError, match=message):
        calibrate_score(score, held_out, specificity, fitted)
    assert all(torch.equal(value, before[name]) for name, value in buffers(score).items())


@pytest.mark.parametrize(("n", "specificity", "warns"), [(8, 0.9, True), (9, 0.9, False), (1, 0.95, True)])
def test_too_few_cases_are_told(n: int, specificity: float, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    score = a_score()
    with caplog.at_level(logging.WARNING, logger="aeflow_monai.score.calibration"):
        calibrate_score(score, slices_of(terms_of(2 * n), 6, slices_per_case=2), specificity=specificity)
    assert score.case_rank.tolist() == [n, n]
    assert score.expected_specificity == n / (n + 1)
    # nine of ten times the share of new normals below the largest of n scores is from 0.05^(1/n) to 0.95^(1/n)
    low, high = (100 * share ** (1 / n) for share in (0.05, 0.95))
    patients = "1 patient" if n == 1 else f"{n} patients"
    assert f"comes from normals of {patients}. By their chance the specificity" in caplog.text
    assert f"from {low:.0f}% to {high:.0f}% (nine of ten times)" in caplog.text
    if warns:
        needed = {0.9: 9, 0.95: 19}[specificity]
        told = (
            f"normals of {patients} are too few for a specificity of {100 * specificity:.4g}%, which takes {needed}: "
            f"expect {100 * n / (n + 1):.3g}%."
        )
        assert told in caplog.text
    else:
        assert "too few" not in caplog.text


class TestVolumes:
    @staticmethod
    def volumes(n_cases: int, n_slices: int = 5, rise: float = 0.5) -> list[NormalSlices]:
        """Cases of a batch each, which lie alike: high and noisy on the left, and the higher the slice."""
        terms = alike(terms_of(n_cases * n_slices, seed=n_cases))
        heights = torch.linspace(0, 1, n_slices)
        terms = terms + rise * heights.repeat(n_cases).view(-1, 1, 1, 1)
        places = Places(["axial"] * n_slices, heights)
        return [batch._replace(places=places) for batch in slices_of(terms, n_slices, slices_per_case=n_slices)]

    @staticmethod
    def finished(score: Score, batch: NormalSlices) -> SliceScores:
        stack = score.stack(batch.terms, batch.foreground, batch.places)
        return score(score.blurred(stack))  # type: ignore[no-any-return]

    def test_maps_of_new_normals_are_standard_everywhere(self) -> None:
        score = Score(3)
        calibrate_score(score, self.volumes(24))
        found = torch.stack([self.finished(score, batch).anomaly_map for batch in self.volumes(23)])
        for part in (found[..., :6], found[..., 14:], found[:, 0], found[:, -1]):
            assert part.mean().item() == pytest.approx(0, abs=0.35)
            assert part.std().item() == pytest.approx(1, abs=0.3)

    def test_thresholds_hold_for_new_normals_of_few_cases(self) -> None:
        # compared with themselves, the maps of few cases would be too small, and so would their threshold
        score, new = Score(3), self.volumes(40)
        calibrate_score(score, self.volumes(5), specificity=0.8)
        scores = torch.cat([self.finished(score, batch).slice_scores for batch in new])
        assert (scores <= score.slice_threshold).float().mean() >= 0.7

    def test_places_count_if_images_lie_alike(self) -> None:
        any_way_round = [
            batch._replace(terms=batch.terms.roll((11 * number, 7 * number), dims=(2, 3)))
            for number, batch in enumerate(self.volumes(8, rise=0))
        ]
        score, other = Score(3), Score(3)
        calibrate_score(score, self.volumes(8))
        calibrate_score(other, any_way_round)
        assert len(score.position_norm.mean[0, 16].unique()) > 100
        assert len(other.position_norm.mean[0, 16].unique()) == 1

    def test_one_case_is_enough_but_tells_of_no_place(self) -> None:
        score = Score(3)
        calibrate_score(score, self.volumes(1))
        assert len(score.position_norm.mean.unique()) == 1
        assert all(torch.isfinite(buffer).all() for buffer in score.buffers() if buffer.is_floating_point())

    def test_black_images_leave_maps_as_they_are(self) -> None:
        score = Score(3)
        calibrate_score(score, self.volumes(3))  # of which nothing may be left
        black = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
        calibrate_score(score, slices_of(terms_of(2), 2, foreground=black))
        assert torch.equal(score.position_norm.mean, torch.zeros_like(score.position_norm.mean))
        assert torch.equal(score.position_norm.std, torch.ones_like(score.position_norm.std))

    def test_slices_of_a_plane_are_blurred_together_however_they_are_batched(self) -> None:
        terms = torch.cat([batch.terms for batch in self.volumes(4)])
        places = Places(["axial"] * 20, torch.linspace(0, 1, 5).repeat(4))
        found = []
        for batch_size in (1, 3, 20):
            starts = range(0, 20, batch_size)
            batches = [
                batch._replace(places=places.part(slice(start, start + batch_size)))
                for batch, start in zip(slices_of(terms, batch_size, slices_per_case=5), starts, strict=True)
            ]
            score = Score(3, slice_sigma=0.3)
            calibrate_score(score, batches, specificity=0.7)
            found.append(buffers(score))
        unblurred = Score(3, slice_sigma=0.0)
        calibrate_score(unblurred, batches, specificity=0.7)
        for other in found[1:]:
            for name, value in found[0].items():
                torch.testing.assert_close(other[name], value, **EXACT)
        assert not torch.isclose(unblurred.map_threshold, found[0]["map_threshold"], rtol=1e-3)

    def test_switched_off_maps_do_not_depend_on_the_place(self) -> None:
        score = Score(3, position_normalisation=False)
        volumes = self.volumes(3)
        calibrate_score(score, volumes)
        terms, foreground = volumes[0][:2]
        low = score.stack(terms, foreground, Places(["axial"] * 5, torch.zeros(5)))
        assert torch.equal(score.anomaly_map(low), score.anomaly_map(score.stack(terms, foreground)))

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aeflow_monai.network.aeflow import AEFlow
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.score.calibration import calibrate, recalibrate
from aeflow_monai.score.scoring import AnomalyScorer
from aeflow_monai.score.calibration import save_calibrated
from aeflow_monai.score.position import PositionMoments, PositionNorm
from aeflow_monai.score.scoring import Measured

STATISTICS = ("term_mean", "term_std", "map_std", "share_mean", "share_std")
BUFFERS = (*STATISTICS, "map_threshold", "slice_threshold", "case_threshold", "case_rank")


def blobs(n: int = 10, size: int = 64) -> Tensor:
    noise = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size=(size, size), mode="bicubic").sigmoid()


def batches_of(images: Tensor, batch_size: int, slices_per_case: int = 1) -> list[dict[str, Any]]:
    cases = [f"case_{i // slices_per_case}" for i in range(len(images))]
    starts = range(0, len(images), batch_size)
    return [{"image": images[i : i + batch_size], "case": cases[i : i + batch_size]} for i in starts]


def a_scorer(subnet: str = "conv", **options: Any) -> AnomalyScorer:
    torch.manual_seed(0)
    options = {"by_position": False, "level_weight": 1.0, **options}  # where they are not what a test is about
    return AnomalyScorer(AEFlow(Encoder(), n_steps=2, subnet=subnet), **options).eval()


def buffers(scorer: AnomalyScorer) -> dict[str, Tensor]:
    return {name: getattr(scorer, name).clone() for name in BUFFERS}


@pytest.mark.parametrize("scoring", ["likelihood", "latent"])
@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_terms_and_map_of_the_normals_become_standard(beta: float, scoring: str) -> None:
    scorer, images = a_scorer(beta=beta, scoring=scoring), blobs()
    calibrate(scorer, batches_of(images, 4))
    with torch.no_grad():
        terms = scorer.terms(scorer.aeflow(images), images).double().transpose(0, 1).flatten(1)
        anomaly_map = scorer(images).double()
    standard = (terms - scorer.term_mean[:, None]) / scorer.term_std[:, None]
    torch.testing.assert_close(standard.mean(dim=1), torch.zeros(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(standard.std(dim=1), torch.ones(3).double(), rtol=1e-3, atol=0)
    assert anomaly_map.mean().item() == pytest.approx(0, abs=1e-3)
    assert anomaly_map.std().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("scoring", ["likelihood", "latent", "paper"])
def test_thresholds_are_those_of_the_normals_own_scores(scoring: str) -> None:
    # shares whose mean over slices is not that over pixels, cases that are cut by the batches
    scorer, images = a_scorer(scoring=scoring, slice_shares=[0.05], case_share=0.4), blobs(12)
    calibrate(scorer, batches_of(images, 5, slices_per_case=3), specificity=0.6)
    with torch.no_grad():
        found = scorer.maps(images)
    maps, slices = found["anomaly_map"], found["slice_scores"]
    cases = [slices[i : i + 3].sort(descending=True).values[:2].mean().item() for i in range(0, 12, 3)]
    assert scorer.case_threshold.item() == pytest.approx(sorted(cases)[3 - 1], abs=1e-4)  # ceil(5 * 0.6)
    assert scorer.slice_threshold.item() == pytest.approx(sorted(slices.tolist())[8 - 1], abs=1e-4)  # ceil(13 * 0.6)
    peaks = maps.flatten(1).amax(dim=1)
    assert scorer.map_threshold.item() == pytest.approx(sorted(peaks.tolist())[8 - 1], abs=1e-4)
    assert ((maps > scorer.map_threshold + 1e-4).flatten(1).any(dim=1)).sum() == 12 - 8
    if scoring == "paper":
        assert torch.equal(scorer.term_mean, torch.zeros(3))
        assert torch.equal(scorer.term_std, torch.ones(3))


def test_planes_of_a_case_count_the_same_however_many_slices_they_have() -> None:
    scorer, images = a_scorer(), blobs(8)
    planes = ["axial", "axial", "axial", "coronal"] * 2
    batches = batches_of(images, 3, slices_per_case=4)
    for batch, start in zip(batches, range(0, 8, 3), strict=True):
        batch["axis"] = planes[start : start + 3]
    calibrate(scorer, batches, specificity=0.3)
    with torch.no_grad():
        scores = scorer.maps(images)["slice_scores"].view(2, 4)
    cases = (scores[:, :3].mean(dim=1) + scores[:, 3]) / 2
    assert scorer.case_threshold.item() == pytest.approx(cases.min().item(), abs=1e-4)  # ceil(3 * 0.3)
    assert scorer.slice_threshold.item() == pytest.approx(sorted(scores.flatten().tolist())[2], abs=1e-4)


def test_nothing_depends_on_the_batch_size() -> None:
    images, found = blobs(9), []
    for batch_size in (1, 4, 9):
        scorer = a_scorer()
        calibrate(scorer, batches_of(images, batch_size, slices_per_case=2), specificity=0.5)
        found.append(buffers(scorer))
    for other in found[1:]:
        for name in BUFFERS:
            torch.testing.assert_close(other[name], found[0][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scoring", ["likelihood", "latent"])
def test_an_empty_background_does_not_count(scoring: str) -> None:
    # a head in the middle of empty margins, which are wider than what its features see
    found = []
    for margin in (64, 96):
        scorer, images = a_scorer(scoring=scoring), F.pad(blobs(4), [margin] * 4)
        calibrate(scorer, batches_of(images, 2))
        found.append(buffers(scorer))
        with torch.no_grad():
            inside = scorer(images).double()[images > 0]
        assert inside.mean().item() == pytest.approx(0, abs=1e-3)
        assert inside.std().item() == pytest.approx(1, abs=1e-3)
    narrow, wide = found
    torch.testing.assert_close(wide["term_std"], narrow["term_std"], rtol=0.05, atol=0)
    torch.testing.assert_close(wide["map_std"], narrow["map_std"], rtol=0.05, atol=0)
    shift = (wide["term_mean"] - narrow["term_mean"]) / narrow["term_std"]
    torch.testing.assert_close(shift, torch.zeros(3), rtol=0, atol=0.05)


def test_any_channel_above_zero_is_foreground() -> None:
    torch.manual_seed(0)
    scorer = AnomalyScorer(AEFlow(Encoder(in_channels=2), n_steps=2), by_position=False, level_weight=1.0).eval()
    half = blobs(4)
    half[..., 32:] = 0
    images = torch.cat([half, half.flip(3)], dim=1)  # together they leave nothing empty
    calibrate(scorer, batches_of(images, 2))
    with torch.no_grad():
        assert scorer(images).double().std().item() == pytest.approx(1, abs=1e-3)


def test_empty_images_among_others_do_not_count_however_they_are_batched() -> None:
    images = torch.cat([blobs(4), torch.zeros(2, 1, 64, 64)])
    found = []
    for chosen, batch_size in ((images[:4], 2), (images, 2), (images, 3)):
        scorer = a_scorer()
        calibrate(scorer, batches_of(chosen, batch_size))
        found.append(buffers(scorer))
    for other in found[1:]:
        for name in ("term_mean", "term_std", "map_std"):
            torch.testing.assert_close(other[name], found[0][name], rtol=1e-4, atol=1e-4)


def test_only_empty_images_calibrate_to_finite_numbers() -> None:
    scorer = a_scorer()
    calibrate(scorer, batches_of(torch.zeros(3, 1, 64, 64), 2))
    assert all(torch.isfinite(value).all() for value in buffers(scorer).values())
    assert (scorer.term_std > 0).all()


def test_kept_features_give_the_same() -> None:
    images, computed, kept = blobs(6), a_scorer(), a_scorer()
    batches = batches_of(images, 3)
    calibrate(computed, batches)
    calibrate(kept, [{**b, "features": kept.aeflow.encoder(b["image"])} for b in batches])
    assert all(torch.equal(buffers(kept)[name], buffers(computed)[name]) for name in BUFFERS)
    calibrate(kept, [{**b, "features": [0 * f for f in kept.aeflow.encoder(b["image"])]} for b in batches])
    assert not torch.equal(kept.term_mean, computed.term_mean)  # they are used


def test_calibrating_again_gives_the_same() -> None:
    scorer = a_scorer()
    calibrate(scorer, batches_of(blobs(), 5))
    first = buffers(scorer)
    calibrate(scorer, batches_of(blobs(), 5))
    assert all(torch.equal(buffers(scorer)[name], first[name]) for name in BUFFERS)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_everything_else_stay(training: bool) -> None:
    scorer = a_scorer(subnet="resnet").train(training)  # has batch norm, and feature norms that are not fitted yet
    before = {key: value.clone() for key, value in scorer.state_dict().items()}
    calibrate(scorer, batches_of(blobs(), 5))
    assert scorer.training == scorer.aeflow.flows.training == training
    assert not scorer.aeflow.encoder.training
    changed = {key for key, value in scorer.state_dict().items() if not torch.equal(value, before[key])}
    fields = {f"{norm}.{moment}" for norm in ("position", "usual_dissimilarity") for moment in ("mean", "std")}
    assert changed - fields == set(BUFFERS)


def test_constant_term_keeps_its_unit() -> None:
    scorer, images = a_scorer(), torch.full((3, 1, 64, 64), 0.5)
    scorer.aeflow.decoder.to_image[0].weight.data.zero_()  # type: ignore[union-attr,operator]
    scorer.aeflow.decoder.to_image[0].bias.data.zero_()  # type: ignore[union-attr,operator]
    calibrate(scorer, batches_of(images, 2))
    assert all(torch.isfinite(value).all() for value in buffers(scorer).values())
    assert scorer.term_std[-1].item() == pytest.approx(1)
    with torch.no_grad():
        assert torch.isfinite(scorer(blobs())).all()


@pytest.mark.parametrize("scoring", ["likelihood", "latent", "paper"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no images", r"held-out normal.*; got none"),
        ("diverged", r"not finite.*: the training diverged\. Lower the learning rate.*The model was not saved"),
        ("specificity", r"has to be in \(0, 1\), as 0\.95; got 1\.0"),
        ("case names", "argument"),
    ],
)
def test_failure_leaves_buffers_and_mode_as_they_were(scoring: str, fault: str, message: str) -> None:
    scorer = a_scorer(scoring=scoring)
    calibrate(scorer, batches_of(blobs(4), 2))
    before = buffers(scorer)
    scorer.train()
    batches, specificity = batches_of(1 - blobs(4), 2), 0.95  # other images, so other statistics
    if fault == "no images":
        batches = []
    elif fault == "diverged":
        next(scorer.aeflow.flows.parameters()).data.fill_(torch.nan)
    elif fault == "specificity":
        specificity = 1.0
    else:
        batches[-1]["case"] = ["one"]
    with pytest.raises(ValueError, match=message):
        calibrate(scorer, batches, specificity)
    assert all(torch.equal(buffers(scorer)[name], before[name]) for name in BUFFERS)
    assert scorer.training


def test_one_slice_that_is_not_finite_is_no_skipped_slice() -> None:
    scorer, images = a_scorer(scoring="paper"), blobs(4)
    images[1, 0, 0, 0] = torch.nan
    before = buffers(scorer)
    with pytest.raises(ValueError, match=r"The image of case \S+ holds NaN or infinite values: mend it"):
        calibrate(scorer, batches_of(images, 2, slices_per_case=4))
    assert all(torch.equal(buffers(scorer)[name], before[name]) for name in BUFFERS)


def test_batches_that_can_be_read_once_only_are_refused() -> None:
    with pytest.raises(ValueError, match="three times: give a list or a DataLoader, no generator"):
        calibrate(a_scorer(), iter(batches_of(blobs(4), 2)))
    with pytest.raises(ValueError, match="three times: give a list or a DataLoader, no generator"):
        calibrate(a_scorer(), batches_of(blobs(4), 2), fitted=iter(batches_of(blobs(4), 2)))


@pytest.mark.parametrize("kind", ["cut short", "text", "another dictionary", "a list", "another network"])
def test_a_file_that_is_no_model_is_refused(kind: str, tmp_path: Path) -> None:
    path, scorer = tmp_path / "model.pt", a_scorer()
    save_calibrated(scorer, path)
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text":
        path.write_text("no model")
    else:
        weights = {"layer1.conv.weight": torch.zeros(2)}
        torch.save({"another dictionary": weights, "a list": {"model": [1]}}.get(kind, {"model": weights}), path)
    message = (
        "This is no checkpoint of AE-Flow: it holds layer1" if kind == "another network" else "is no model: expected"
    )
    with pytest.raises(ValueError, match=message):
        recalibrate(scorer, path, batches_of(blobs(4), 2), tmp_path / "new.pt")
    assert not (tmp_path / "new.pt").exists()


def measured(scorer: AnomalyScorer, images: Tensor) -> Measured:
    with torch.no_grad():
        return scorer.measure(scorer.aeflow(images), images)


def moments_of(maps: Tensor, cases: Sequence[str], grid: int = 16) -> PositionMoments:
    """Of maps, or of numbers (N,), of images that are foreground all over."""
    moments = PositionMoments(grid)
    for one, case in zip(maps.view(len(maps), 1, *(maps.shape[2:] or (1, 1))), cases, strict=True):
        moments.add(one[None], torch.ones_like(one[None]), None, case)
    return moments


@pytest.mark.parametrize("by_position", [True, False])
def test_normals_of_the_training_tell_what_is_usual_where_and_nothing_else(by_position: bool) -> None:
    held_out, fitted = batches_of(blobs(2), 2, slices_per_case=2), batches_of(1 - blobs(6), 4)
    for batch in fitted:
        batch["case"] = [f"fitted_{case}" for case in batch["case"]]
    alone, together = a_scorer(by_position=by_position), a_scorer(by_position=by_position)
    calibrate(alone, held_out)
    calibrate(together, held_out, fitted=fitted)
    for name in ("term_mean", "term_std", "map_std"):
        assert torch.equal(getattr(together, name), getattr(alone, name))
    # of a single held-out case places cannot be learned
    assert alone.position.mean.flatten(1).std(dim=1).max() == 0
    if not by_position:
        assert torch.equal(together.position.mean, alone.position.mean)
        return
    images, others = held_out[0]["image"], torch.cat([batch["image"] for batch in fitted])
    sums = measured(together, images).weighted_sum
    own = moments_of(sums, ["held out"] * 2)
    fit = moments_of(measured(together, others).weighted_sum, [case for batch in fitted for case in batch["case"]])
    expected, of_others = PositionNorm(), PositionNorm()
    expected.fit([own, fit])
    of_others.fit([fit])
    torch.testing.assert_close(together.position.mean, expected.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.position.std, expected.std, rtol=1e-4, atol=1e-4)
    # for its threshold the case was compared with the others alone
    maps = together.standardised(sums, torch.ones_like(images) > 0, None, of_others)
    scores = together.slice_scores(maps, torch.zeros(2))
    assert together.case_threshold.item() == pytest.approx(scores.mean().item(), abs=1e-3)


def test_what_is_usual_anywhere_comes_from_others_too() -> None:
    images = blobs(12)
    images[..., :32] = 0.5  # flat on one side, whichever way the image lies
    images = torch.stack([image.rot90(number, dims=(1, 2)) for number, image in enumerate(images)])
    scorer = a_scorer(by_position=True, ease_weight=0.0)
    calibrate(scorer, batches_of(images, 5))
    assert len(scorer.position.mean[0, 16].unique()) == 1
    sums, expected = measured(scorer, images).weighted_sum, torch.zeros(12)
    for group in range(5):
        others = [i for i in range(12) if i % 5 != group]
        norm = PositionNorm()
        norm.fit([moments_of(sums[others], [str(i) for i in others])], by_position=False)
        maps = scorer.standardised(sums[group::5], images[group::5] > 0, None, norm)
        expected[group::5] = scorer.slice_scores(maps, torch.zeros(len(maps)))
    assert scorer.case_threshold.item() == pytest.approx(expected.max().item(), abs=1e-3)


@pytest.mark.parametrize("by_position", [True, False])
def test_how_easy_a_patient_is_is_told_by_the_others(by_position: bool) -> None:
    images = blobs(12)
    images[11] = 0.5 + 0.02 * (images[11] - 0.5)  # nearly flat
    scorer, blind = a_scorer(by_position=by_position), a_scorer(by_position=by_position, ease_weight=0.0)
    calibrate(scorer, batches_of(images, 5))
    calibrate(blind, batches_of(images, 5))
    dissimilarity = measured(scorer, images).dissimilarity
    others = [i for i in range(12) if i % 5 != 1]
    mean, std = dissimilarity[others].mean(), dissimilarity[others].std(correction=0)
    ease = (mean - dissimilarity[11]) / (std * math.sqrt((9 + 1) / (9 - 1)))
    assert ease > 2
    # the highest score is that of the one that is so easy, and the threshold of both is the highest
    assert scorer.case_threshold > blind.case_threshold
    with torch.no_grad():
        own = blind.maps(images[11:])["slice_scores"].item()
    if not by_position:  # where maps are compared with the same in either way
        assert scorer.case_threshold.item() == pytest.approx(own + 2 * (ease - 1.5).item(), rel=1e-3)
    of_all = (dissimilarity.mean() - dissimilarity[11]) / (dissimilarity.std(correction=0) * math.sqrt(13 / 11))
    assert scorer.ease(dissimilarity, images > 0)[11].item() == pytest.approx(of_all.item(), rel=1e-3)


@pytest.mark.parametrize(("n", "is_told"), [(4, False), (6, False), (7, True)])
def test_few_patients_do_not_tell_what_is_too_easy(n: int, is_told: bool) -> None:
    images, scorer = blobs(n), a_scorer()
    calibrate(scorer, batches_of(images, 2))
    dissimilarity = measured(scorer, images).dissimilarity
    assert bool(scorer.ease(dissimilarity, images > 0).any()) == is_told


def test_black_slices_do_not_tell_how_easy_slices_are() -> None:
    images = torch.cat([blobs(10), torch.zeros(2, 1, 64, 64)])
    alone, among_black = a_scorer(), a_scorer()
    calibrate(alone, batches_of(images[:10], 5))
    calibrate(among_black, batches_of(images, 5))
    torch.testing.assert_close(among_black.usual_dissimilarity.mean, alone.usual_dissimilarity.mean)
    torch.testing.assert_close(among_black.usual_dissimilarity.std, alone.usual_dissimilarity.std)
    with torch.no_grad():
        assert among_black.maps(images[10:])["ease"].tolist() == [0, 0]


def test_images_of_a_patient_are_not_compared_with_each_other_and_promise_no_more_than_one() -> None:
    images = blobs(12)
    batches = batches_of(images, 4)
    by_patient = [{**batch, "patient": [f"{int(case[5:]) // 4}" for case in batch["case"]]} for batch in batches]
    alone, grouped = a_scorer(by_position=True), a_scorer(by_position=True)
    calibrate(alone, batches, specificity=0.9)
    calibrate(grouped, by_patient, specificity=0.9)
    assert (alone.case_rank.tolist(), grouped.case_rank.tolist()) == ([12, 12], [3, 3])
    assert not torch.equal(alone.case_threshold, grouped.case_threshold)


@pytest.mark.parametrize(("n", "specificity", "warns"), [(8, 0.9, True), (9, 0.9, False), (1, 0.95, True)])
def test_too_few_cases_are_told(n: int, specificity: float, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    images, scorer = blobs(2 * n), a_scorer()
    with caplog.at_level(logging.WARNING, logger="aeflow_monai.calibration"):
        calibrate(scorer, batches_of(images, 6, slices_per_case=2), specificity=specificity)
    assert scorer.case_rank.tolist() == [n, n]
    if warns:
        needed = {0.9: 9, 0.95: 19}[specificity]
        told = f"normals of {n} patients cannot promise a specificity of {specificity:.0%} (it takes {needed})"
        assert told in caplog.text
    else:
        assert not caplog.records

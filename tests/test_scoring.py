import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import GaussianSmooth
from torch import Tensor
from torch.nn import functional as F

from aeflow_monai.network.aeflow import AEFlow, AEFlowOutput
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.network.loss import AEFlowLoss
from aeflow_monai.score.calibration import calibrate
from aeflow_monai.score.scoring import AnomalyScorer
from aeflow_monai.data.phantom import make_volume
from aeflow_monai.score.scoring import _is_tissue

SIZE = 64
BUFFERS = ("term_mean", "term_std", "map_std", "map_threshold", "slice_threshold", "case_threshold")


def phantom_slices(seeds: range) -> Tensor:
    """The ten middle slices of each normal phantom head, upright and in [0, 1]: (N, 1, 64, 64)."""
    volumes = []
    for seed in seeds:
        volume = make_volume(seed)
        canonical = nib.as_closest_canonical(nib.Nifti1Image(volume.image, volume.affine)).get_fdata()
        slices = torch.tensor(np.ascontiguousarray(canonical[::-1, ::-1, 5:15].T[:, None]), dtype=torch.float32)
        slices = (slices / np.percentile(canonical, 99.5)).clamp(0, 1)
        volumes.append(F.interpolate(slices, size=(SIZE, SIZE), mode="bilinear", antialias=True))
    return torch.cat(volumes)


@pytest.fixture(scope="module")
def normals() -> Tensor:
    return phantom_slices(range(20, 22))


@pytest.fixture(scope="module")
def calibrated(normals: Tensor) -> AnomalyScorer:
    """A small network after a few steps on normal phantom slices, calibrated on those of other heads."""
    torch.manual_seed(0)
    scorer = AnomalyScorer(AEFlow(Encoder(stages=[1, 2]), n_steps=4), beta=0.9).train()
    images = phantom_slices(range(5))
    features = scorer.aeflow.encoder(images)
    loss = AEFlowLoss()
    optimizer = torch.optim.Adam((p for p in scorer.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(40):
        chosen = torch.randperm(len(images))[:16]
        optimizer.zero_grad()
        loss(scorer.aeflow(images[chosen], [f[chosen] for f in features]), images[chosen]).backward()
        optimizer.step()
    calibrate(scorer, [{"image": normals, "case": [f"{i}" for i in range(len(normals))]}])
    return scorer.eval()


def a_scorer(stages: tuple[int, ...] = (2, 3), **options: Any) -> AnomalyScorer:
    """Not trained, but with statistics and thresholds as if it were calibrated."""
    torch.manual_seed(0)
    scorer = AnomalyScorer(AEFlow(Encoder(stages=stages), n_steps=2), **options).eval()
    scorer.term_mean.copy_(torch.linspace(1, 2, len(stages) + 1))
    scorer.term_std.copy_(torch.linspace(0.5, 3, len(stages) + 1))
    scorer.map_std.fill_(0.7)
    scorer.map_threshold.fill_(3.25)
    scorer.slice_threshold.fill_(1.5)
    scorer.case_threshold.fill_(0.75)
    return scorer


def ssim_by_hand(one: Tensor, other: Tensor) -> Tensor:
    """SSIM map of images (N, 1, H, W) in [0, 1]: Gaussian window of 11 pixels, sigma 1.5, mirrored borders."""
    profile = torch.exp(-0.5 * (torch.arange(-5.0, 6) / 1.5) ** 2).double()
    window = (profile[:, None] * profile / profile.sum() ** 2)[None, None]

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (5, 5, 5, 5), mode="reflect"), window)

    x, y = one.double(), other.double()
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


class TestTrained:
    @pytest.mark.parametrize("corner", [(28, 20), (24, 36), (40, 30)])
    def test_planted_square_raises_the_score_and_the_map_peaks_on_it(
        self, calibrated: AnomalyScorer, corner: tuple[int, int]
    ) -> None:
        row, column = corner
        size, margin = 9, 4
        normal = phantom_slices(range(22, 23))
        planted = normal.clone()
        planted[:, :, row : row + size, column : column + size] = 1
        with torch.no_grad():
            before, after = calibrated.maps(normal), calibrated.maps(planted)
        assert (after["slice_scores"] > before["slice_scores"]).all()
        peaks = after["anomaly_map"].flatten(1).argmax(dim=1)
        rows, columns = peaks // SIZE, peaks % SIZE
        assert ((rows >= row - margin) & (rows < row + size + margin)).all()
        assert ((columns >= column - margin) & (columns < column + size + margin)).all()

    def test_a_slice_that_lost_its_details_is_no_perfect_normal(self, calibrated: AnomalyScorer) -> None:
        blurred = GaussianSmooth(sigma=5.0)(phantom_slices(range(22, 23))[:, 0])[:, None]
        with torch.no_grad():
            found = calibrated.maps(torch.as_tensor(blurred))
        ease = found["ease"]
        assert (ease > 1.5).all()
        beyond = 2 * (ease - 1.5)
        maps_alone = calibrated.slice_scores(found["anomaly_map"], torch.zeros(len(ease)))
        torch.testing.assert_close(found["slice_scores"], maps_alone + beyond)

    def test_score_does_not_depend_on_neighbours_or_order(self, calibrated: AnomalyScorer, normals: Tensor) -> None:
        extremes = torch.stack([torch.zeros(1, SIZE, SIZE), torch.ones(1, SIZE, SIZE), 1e-3 * normals[0]])
        images = torch.cat([normals[::3], extremes])
        with torch.no_grad():
            each = [calibrated.maps(image[None]) for image in images]
            together = calibrated.maps(images)
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            shuffled = calibrated(images[order])
        alone = {name: torch.cat([maps[name] for maps in each]) for name in ("weighted_sum", "anomaly_map")}
        torch.testing.assert_close(together["weighted_sum"], alone["weighted_sum"], rtol=1e-5, atol=1e-4)
        # a map is the difference of its sums and their mean: no more exact than these are
        for one, other, sums in zip(together["anomaly_map"], alone["anomaly_map"], alone["weighted_sum"], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 + 1e-5 * sums.abs().amax().item())
        torch.testing.assert_close(shuffled, together["anomaly_map"][order], rtol=1e-5, atol=1e-4)
        one, other = torch.cat([maps["slice_scores"] for maps in each]), together["slice_scores"]
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
        assert torch.equal(one.argsort(), other.argsort())

    def test_checkpoint_gives_equal_maps_scores_and_thresholds(
        self, calibrated: AnomalyScorer, normals: Tensor, tmp_path: Path
    ) -> None:
        torch.save({"model": calibrated.state_dict()}, tmp_path / "model.pt")
        state = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
        torch.manual_seed(9)
        encoder = Encoder(stages=[1, 2], weights="checkpoint")
        loaded = AnomalyScorer(AEFlow(encoder, n_steps=4, seed=5)).eval()
        loaded.load_state_dict(state)
        with torch.no_grad():
            for name, expected in calibrated.maps(normals).items():
                assert torch.equal(loaded.maps(normals)[name], expected), name
            scores = calibrated.maps(normals)["slice_scores"]
        assert torch.equal(loaded.case_score({"axial": scores}), calibrated.case_score({"axial": scores}))
        for name in BUFFERS:
            assert torch.equal(getattr(loaded, name), getattr(calibrated, name)), name
            assert torch.isfinite(getattr(loaded, name)).all(), name


@pytest.mark.parametrize("scoring", ["likelihood", "latent"])
@pytest.mark.parametrize("stages", [(3,), (2, 3)])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_map_is_the_stated_formula(stages: tuple[int, ...], beta: float, scoring: str, normals: Tensor) -> None:
    scorer = a_scorer(stages, beta=beta, scoring=scoring)
    with torch.no_grad():
        output = scorer.aeflow(normals[:2])
        flows = [-m for m in output.log_likelihoods]
        if scoring == "latent":  # without the log-determinant
            flows = [(0.5 * z**2 + 0.5 * np.log(2 * np.pi)).mean(dim=1, keepdim=True) for z in output.latents]
        terms = [F.interpolate(m, size=(SIZE, SIZE), mode="bilinear") for m in flows]
        terms.append(1 - ssim_by_hand(output.reconstruction, normals[:2]).float())
        torch.testing.assert_close(scorer.terms(output, normals[:2]), torch.cat(terms, dim=1), rtol=1e-4, atol=1e-4)
        standard = [(t - m) / s for t, m, s in zip(terms, scorer.term_mean, scorer.term_std, strict=True)]
        flow = sum(standard[:-1]) / len(stages)
        high = (beta * flow + (1 - beta) * standard[-1]) / 0.7
        level = torch.stack([one[image > 0].mean() for one, image in zip(high, normals[:2], strict=True)])
        expected = high - 0.5 * level.view(2, 1, 1, 1)
        torch.testing.assert_close(scorer(normals[:2]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level_weight", [1.0, 0.25])
def test_level_is_that_of_the_foreground_and_of_each_slice(level_weight: float) -> None:
    scorer = a_scorer(level_weight=level_weight, by_position=False)
    foreground = torch.zeros(3, 1, SIZE, SIZE, dtype=torch.bool)
    foreground[:2, :, 8:24, 8:24] = True  # the third is black
    sums = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    sums[1] += 5
    scorer.position.mean.fill_(0.5)  # the level is of what is higher than usual
    scorer.position.std.fill_(2.0)
    high = (sums - 0.5) / 2
    anomaly_map = scorer.standardised(sums, foreground)
    for one, before in zip(anomaly_map[:2, 0, 8:24, 8:24], high[:2, 0, 8:24, 8:24], strict=True):
        torch.testing.assert_close(one, before - (1 - level_weight) * before.mean())
    outside = ~foreground[:2]
    torch.testing.assert_close(anomaly_map[:2][outside], high[:2][outside].clamp_max(0))
    torch.testing.assert_close(anomaly_map[2], high[2])


def test_a_higher_level_is_a_higher_mean_however_wide_the_margins() -> None:
    scorer = a_scorer(level_weight=0.25, by_position=False)
    foreground = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    foreground[..., 8:24, 8:24] = True  # a sixteenth
    sums = torch.full((2, 1, SIZE, SIZE), -0.5)
    sums[1, :, 8:24, 8:24] = 4.0
    low, high = scorer.standardised(sums, foreground).mean(dim=(1, 2, 3))
    assert high > low + 0.05


@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_paper_scoring_is_the_published_formula_per_dimension(beta: float, normals: Tensor) -> None:
    scorer = a_scorer((3,), beta=beta, scoring="paper")
    image = normals[:2]
    with torch.no_grad():
        output = scorer.aeflow(image)
        (latent,) = output.latents
        minus_log_density = (0.5 * latent**2 + 0.5 * np.log(2 * np.pi)).mean(dim=1, keepdim=True)
        flow = F.interpolate(minus_log_density, size=(SIZE, SIZE), mode="bilinear")
        expected = beta * flow + (1 - beta) * -ssim_by_hand(output.reconstruction, image).float()
        torch.testing.assert_close(scorer(image), expected, rtol=1e-4, atol=1e-4)


def test_paper_scoring_is_finite_at_the_published_size_and_has_no_log_determinant() -> None:
    scorer = AnomalyScorer(AEFlow(Encoder(stages=[3], weights="random"), n_steps=1), scoring="paper")
    generator = torch.Generator().manual_seed(0)
    latent = 10 * torch.randn(1, 1024, 16, 16, generator=generator)
    image = torch.rand(1, 1, 256, 256, generator=generator)
    output = AEFlowOutput([latent], [torch.full((1, 1, 16, 16), torch.nan)], image)
    anomaly_map = scorer.anomaly_map(output, image)
    assert torch.isfinite(anomaly_map).all()
    assert anomaly_map.std() > 0.1  # 90 % of it is not a constant
    stranger = scorer.anomaly_map(AEFlowOutput([1.1 * latent], output.log_likelihoods, image), image)
    assert (stranger > anomaly_map).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstruction_term_is_ssim_also_in_mixed_precision(channels: int) -> None:
    network = AEFlow(Encoder(stages=[3], weights="random", in_channels=channels), n_steps=1)
    scorer = AnomalyScorer(network, scoring="likelihood")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, channels, 8, 8, generator=generator)
    image = F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)
    noisy = (image + 0.02 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    output = AEFlowOutput([], [torch.zeros(2, 1, 4, 4)], noisy)
    by_hand = 1 - ssim_by_hand(noisy.flatten(0, 1)[:, None], image.flatten(0, 1)[:, None])
    expected = by_hand.view(2, channels, SIZE, SIZE).mean(dim=1).float()
    assert expected.max() > 0.1
    torch.testing.assert_close(scorer.terms(output, image)[:, -1], expected, rtol=0, atol=1e-3)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            term = scorer.terms(output, image)[:, -1]
        torch.testing.assert_close(term, expected, rtol=0, atol=1e-3)


def test_reconstruction_term_by_hand_on_flat_images() -> None:
    scorer = a_scorer((3,), scoring="likelihood")
    flat = torch.full((1, 1, 64, 64), 0.5)
    for other, ssim in ((0.5, 1.0), (0.0, 1e-4 / (0.25 + 1e-4)), (1.0, (1 + 1e-4) / (1.25 + 1e-4))):
        output = AEFlowOutput([], [torch.zeros(1, 1, 4, 4)], torch.full_like(flat, other))
        term = scorer.terms(output, flat)[:, -1]
        torch.testing.assert_close(term, torch.full_like(term, 1 - ssim), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, 5.5), (0.5, 8.0), (0.25, 9.0), (0.1, 10.0), (0.001, 10.0)],  # 0.25 of ten values is three values
)
def test_shares_by_hand(share: float, expected: float) -> None:
    values = torch.tensor([3.0, 10, 1, 7, 5, 2, 9, 4, 8, 6])
    scorer = AnomalyScorer(AEFlow(Encoder(weights="random"), n_steps=1), slice_shares=[share], case_share=share)
    maps = torch.stack([values, -values]).view(2, 1, 2, 5)
    assert scorer.slice_scores(maps, torch.zeros(2)).tolist() == pytest.approx([expected, expected - 11])
    assert scorer.case_score({"coronal": values}).item() == pytest.approx(expected)
    # a skipped slice counts for nothing, not even in the number of slices
    skipped = torch.full((7,), torch.nan)
    assert scorer.case_score({"axial": torch.cat([skipped, values, skipped])}).item() == pytest.approx(expected)
    # each plane counts the same, however many slices it has
    planes = {"axial": values, "coronal": torch.full((50,), 20.0), "sagittal": skipped}
    assert scorer.case_score(planes).item() == pytest.approx((expected + 20) / 2)


@pytest.mark.parametrize("scores", [{}, {"axial": torch.full((3,), torch.nan)}])
def test_a_case_without_any_slice_has_no_score(scores: dict[str, Tensor]) -> None:
    assert a_scorer().case_score(scores).isnan()


@pytest.mark.parametrize("in_channels", [1, 3])
def test_all_maps(in_channels: int) -> None:
    torch.manual_seed(0)
    scorer = AnomalyScorer(AEFlow(Encoder(in_channels=in_channels), n_steps=1)).eval()
    image = torch.rand(2, in_channels, 64, 96)
    with torch.no_grad():
        maps = scorer.maps(image)
        output = scorer.aeflow(image)
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        "anomaly_map": (2, 1, 64, 96),
        "weighted_sum": (2, 1, 64, 96),
        "dissimilarity": (2,),
        "reconstruction": (2, in_channels, 64, 96),
        "residual": (2, 1, 64, 96),
        "log_likelihood": (2, 1, 64, 96),
        "slice_scores": (2,),
        "ease": (2,),
    }
    assert torch.equal(maps["ease"], scorer.ease(maps["dissimilarity"], image > 0))
    ease = maps["ease"]
    assert torch.equal(maps["slice_scores"], scorer.slice_scores(maps["anomaly_map"], ease))
    assert torch.equal(maps["anomaly_map"], scorer(image).detach())
    assert torch.equal(maps["reconstruction"], output.reconstruction)
    residual = (image - output.reconstruction).abs().sum(dim=1, keepdim=True) / in_channels
    torch.testing.assert_close(maps["residual"], residual)
    fine, coarse = (F.interpolate(m, size=(64, 96), mode="bilinear") for m in output.log_likelihoods)
    torch.testing.assert_close(maps["log_likelihood"], (fine + coarse) / 2)


def build(stages: tuple[int, ...] = (2, 3), backbone: str = "tf_efficientnet_lite0", **options: Any) -> AnomalyScorer:
    return AnomalyScorer(AEFlow(Encoder(backbone, stages=stages, weights="random"), **{"n_steps": 2, **options}))


@pytest.mark.parametrize(
    ("other", "detail"),
    [
        (lambda: build(n_steps=3), r"tensors unknown to the network, first aeflow\.flows\.0\.steps\.2\."),
        (lambda: build(n_steps=1), r"tensors missing from the checkpoint, first aeflow\.flows\.0\.steps\.1\."),
        (lambda: build(stages=(3,)), r"tensors missing from the checkpoint, first aeflow\.flows\.1\."),
        (lambda: build(stages=(2, 4)), r"tensors of another shape, first .*in the checkpoint, .* in the network"),
        (lambda: build(subnet="resnet"), r"tensors missing .*; .*tensors unknown to the network, first .*subnet"),
        (lambda: build(hidden_channels=8), r"tensors of another shape, first aeflow\.flows\.0\.steps\.0\.subnet"),
        (lambda: build(feature_norm=None), r"3? ?tensors missing from the checkpoint, first aeflow\.flows\.0\.norm"),
        (lambda: build(feature_norm="image"), r"tensors unknown to the network, first .*norm\.per_image"),
        (lambda: build(backbone="resnet10t"), r"tensors missing from the checkpoint, first aeflow\.encoder"),
    ],
)
def test_checkpoint_of_another_architecture_is_named(other: Callable[[], AnomalyScorer], detail: str) -> None:
    network = build()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    remedy = (
        r"Give the same config files and network options \(backbone, stages, n_steps, subnet.*choose the checkpoint"
    )
    with pytest.raises(ValueError, match=rf"another architecture.*{detail}.*{remedy}"):
        network.load_state_dict(other().state_dict())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_state_may_be_loaded_in_part_if_asked() -> None:
    network = build()
    keys = network.load_state_dict({"map_threshold": torch.tensor(4.0)}, strict=False)
    assert network.map_threshold == 4
    assert "case_threshold" in keys.missing_keys


def test_new_scorer_flags_nothing() -> None:
    scorer = build()
    for name in ("map_threshold", "slice_threshold", "case_threshold"):
        assert getattr(scorer, name) == torch.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scoring": "density"},
            r"Unknown scoring 'density': choose one of \['latent', 'likelihood', 'paper'\]",
        ),
        ({"beta": 1.5}, r"beta .* in \[0, 1\]; got 1\.5"),
        ({"slice_shares": []}, r"list of one or more shares, as \[0\.05, 1\.0\]; got \[\]"),
        ({"slice_shares": 0.5}, r"list of one or more shares, as \[0\.05, 1\.0\]; got 0\.5"),
        ({"slice_shares": [0.5, 0.0]}, r"slice_shares: .* in \(0, 1\]; got 0\.0"),
        ({"ease_weight": -1.0}, r"ease_weight .* 0 or more; got -1\.0"),
        ({"level_weight": 0.0}, r"level_weight .* in \(0, 1\]; got 0\.0"),
        ({"case_share": 1.1}, r"case_share: .* in \(0, 1\]; got 1\.1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnomalyScorer(AEFlow(Encoder(weights="random"), n_steps=1), **options)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"scoring": "likelihood"}, "scoring latent in the checkpoint, likelihood here"),
        ({"beta": 0.5}, "beta 0.9 in the checkpoint, 0.5 here"),
        ({"by_position": False}, "by_position True in the checkpoint, False here"),
        ({"ease_weight": 0.0}, r"ease_weight 2\.0 in the checkpoint, 0\.0 here"),
        ({"level_weight": 1.0}, r"level_weight 0\.5 in the checkpoint, 1\.0 here"),
        ({"slice_shares": [0.3]}, r"slice_shares \[1\.0\] in the checkpoint, \[0\.3\] here"),
    ],
)
def test_thresholds_are_not_used_for_another_score(other: dict[str, Any], named: str) -> None:
    trained = AnomalyScorer(AEFlow(Encoder(), n_steps=1))
    with pytest.raises(ValueError, match=rf"another score \({named}\)\. Give the same overlay"):
        AnomalyScorer(AEFlow(Encoder(), n_steps=1), **other).load_state_dict(trained.state_dict())


def test_slice_score_is_the_mean_of_its_standardised_shares() -> None:
    scorer = AnomalyScorer(AEFlow(Encoder(weights="random"), n_steps=1), slice_shares=[0.25, 1.0])
    scorer.share_mean.copy_(torch.tensor([2.0, 0.5]))
    scorer.share_std.copy_(torch.tensor([0.5, 0.25]))
    spot, haze = torch.tensor([4.0, 0.0, 0.0, 0.0]), torch.tensor([2.0, 2.0, 2.0, 2.0])
    maps = torch.stack([spot, haze]).view(2, 1, 2, 2)
    expected = [((4 - 2) / 0.5 + (1 - 0.5) / 0.25) / 2, ((2 - 2) / 0.5 + (2 - 0.5) / 0.25) / 2]
    assert scorer.slice_scores(maps, torch.zeros(2)).tolist() == expected


def test_what_is_easier_than_normals_by_more_than_the_margin_is_added() -> None:
    scorer = AnomalyScorer(AEFlow(Encoder(weights="random"), n_steps=1), ease_weight=2.0)
    scorer.usual_dissimilarity.mean.fill_(0.5)
    scorer.usual_dissimilarity.std.fill_(0.1)
    ease = scorer.ease(torch.tensor([0.9, 0.5, 0.36, 0.3]), torch.ones(4, 1, 8, 8) > 0)
    assert ease.tolist() == pytest.approx([-4, 0, 1.4, 2], abs=1e-5)
    scores = scorer.slice_scores(torch.zeros(4, 1, 8, 8), ease)
    assert scores.tolist() == pytest.approx([0, 0, 0, 2 * (2 - 1.5)], abs=1e-4)
    published = AnomalyScorer(AEFlow(Encoder(weights="random"), n_steps=1), scoring="paper", ease_weight=2.0)
    assert published.slice_scores(torch.zeros(4, 1, 8, 8), ease).tolist() == [0, 0, 0, 0]


def test_how_unlike_its_reconstruction_a_slice_is_counts_where_there_is_foreground() -> None:
    scorer = a_scorer()
    image = torch.zeros(2, 1, 64, 64)
    image[0, :, 8:40, 16:48] = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.01
    with torch.no_grad():
        output = scorer.aeflow(image)
        measured = scorer.measure(output, image)
    difference = 1 - ssim_by_hand(output.reconstruction, image)
    expected = difference[0, :, 8:40, 16:48].mean().item()
    assert measured.dissimilarity[0].item() == pytest.approx(expected, rel=1e-3)
    assert measured.dissimilarity[1].item() == 0  # of a black slice nothing counts


@pytest.mark.parametrize(
    "part", ["prior", "position", "usual_dissimilarity", "share_mean", "score_settings", "score_shares"]
)
def test_checkpoint_without_a_part_is_of_an_earlier_version(part: str) -> None:
    scorer = a_scorer()
    state = {key: value for key, value in scorer.state_dict().items() if not key.startswith(part)}
    state["settings"] = torch.tensor([3.0, 0.9, 0.05, 0.25], dtype=torch.float64)  # scoring was one of four there
    with pytest.raises(ValueError, match=rf"by an earlier version, which had no {part}.* yet: train again"):
        scorer.load_state_dict(state)


def test_checkpoint_of_a_score_with_other_options_is_of_another_version() -> None:
    scorer = a_scorer()
    state = scorer.state_dict()
    state["score_settings"] = state["score_settings"][:-1]
    with pytest.raises(ValueError, match=r"whose score had 6 options where this has 7: train again"):
        scorer.load_state_dict(state)


def test_tissue_has_foreground_on_all_four_sides() -> None:
    foreground = torch.rand(6, 1, 20, 12, generator=torch.Generator().manual_seed(0)) < torch.tensor(
        [0.0, 0.02, 0.05, 0.2, 0.6, 1.0]
    ).view(-1, 1, 1, 1)
    tissue = _is_tissue(foreground)
    for image, found in zip(foreground[:, 0], tissue[:, 0], strict=True):
        for row, column in itertools.product(range(20), range(12)):
            sides = (image[: row + 1, column], image[row:, column], image[row, : column + 1], image[row, column:])
            expected = all(bool(side.any()) for side in sides) or not image.any()
            assert bool(found[row, column]) == expected

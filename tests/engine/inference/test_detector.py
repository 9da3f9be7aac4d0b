import copy
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import GaussianSmooth
from score.normals import raised
from score.precision import double_precision
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from aeflow_monai.data.phantom import make_volume
from aeflow_monai.data.slice_dataset import SliceDataset
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.inference.detector import Detector, calibrate, places_of
from aeflow_monai.engine.inference.inferer import SlicedInferer
from aeflow_monai.geometry import PLANES as GEOMETRY
from aeflow_monai.geometry import Places
from aeflow_monai.network.aeflow import AEFlow, AEFlowOutput
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.network.loss import AEFlowLoss
from aeflow_monai.score.calibration import calibrate_score
from aeflow_monai.score.normal_slices import NormalSlices
from aeflow_monai.score.pooled_features import pooled_features
from aeflow_monai.score.score import Score, SliceScores
from aeflow_monai.score.ssim import ssim_map
from aeflow_monai.score.stack import foreground_of

SIZE = 64
EXACT = {"rtol": 1e-9, "atol": 1e-9}


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
def calibrated(normals: Tensor) -> Detector:
    """A small network after a few steps on normal phantom slices, calibrated on those of other heads."""
    torch.manual_seed(0)
    score = Score(3, top_fractions=[1.0], case_top_fraction=1.0)
    detector = Detector(AEFlow(Encoder(stages=[1, 2]), n_steps=4), score).train()
    images = phantom_slices(range(5))
    features = detector.network.encoder(images)
    loss = AEFlowLoss()
    optimizer = torch.optim.Adam((p for p in detector.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(40):
        chosen = torch.randperm(len(images))[:16]
        optimizer.zero_grad()
        loss(detector.network(images[chosen], [f[chosen] for f in features]), images[chosen]).backward()
        optimizer.step()
    calibrate(detector, [{"image": normals, "case": [f"{i}" for i in range(len(normals))]}])
    return detector.eval()


def a_network(stages: tuple[int, ...] = (2, 3), in_channels: int = 1, **options: Any) -> AEFlow:
    torch.manual_seed(0)
    return AEFlow(Encoder(stages=stages, in_channels=in_channels), **{"n_steps": 2, **options})


def a_detector(
    stages: tuple[int, ...] = (2, 3),
    flow_term: str = "latent",
    in_channels: int = 1,
    subnet: str = "conv",
    **options: Any,
) -> Detector:
    """Not trained, with options that leave out what a test is not about."""
    plain = {
        "position_normalisation": False,
        "level_weight": 1.0,
        "top_fractions": (1.0,),
        "case_top_fraction": 1.0,
    }
    score = Score(len(stages) + 1, **{**plain, **options})
    return Detector(a_network(stages, in_channels, subnet=subnet), score, flow_term).eval()


def blobs(n: int = 10, size: int = SIZE) -> Tensor:
    noise = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size=(size, size), mode="bicubic").sigmoid()


def batches_of(images: Tensor, batch_size: int, slices_per_case: int = 1) -> list[dict[str, Any]]:
    cases = [f"case_{i // slices_per_case}" for i in range(len(images))]
    starts = range(0, len(images), batch_size)
    return [{"image": images[i : i + batch_size], "case": cases[i : i + batch_size]} for i in starts]


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def is_unchanged(module: torch.nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("n_terms", [1, 2, 4])
def test_a_score_of_another_number_of_terms_is_refused(n_terms: int) -> None:
    message = rf"takes {n_terms} terms, but a network of 2 encoder stages gives 3\. Set n_terms of the score to that"
    with pytest.raises(ValueError, match=message):
        Detector(a_network(), Score(n_terms))


@pytest.mark.parametrize("flow_term", ["density", "paper", ""])
def test_unknown_flow_term_is_named(flow_term: str) -> None:
    message = rf"Unknown flow_term '{flow_term}': choose one of \['latent', 'likelihood'\]"
    with pytest.raises(ValueError, match=message):
        Detector(a_network(), Score(3), flow_term)


def test_state_is_that_of_the_network_and_of_the_score() -> None:
    network, score = a_network(), Score(3)
    detector = Detector(network, score)
    expected = {f"network.{name}" for name in network.state_dict()} | {f"score.{name}" for name in score.state_dict()}
    assert detector.state_dict().keys() == expected
    assert detector.device == torch.device("cpu")
    assert not detector.score.is_calibrated


class TestTrained:
    @pytest.mark.parametrize("corner", [(28, 20), (24, 36), (40, 30)])
    def test_planted_square_raises_the_score_and_the_map_peaks_on_it(
        self, calibrated: Detector, corner: tuple[int, int]
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

    def test_a_slice_that_lost_its_details_is_no_perfect_normal(self, calibrated: Detector) -> None:
        blurred = GaussianSmooth(sigma=5.0)(phantom_slices(range(22, 23))[:, 0])[:, None]
        with torch.no_grad():
            found = calibrated.maps(torch.as_tensor(blurred))
        ease = found["ease"]
        assert (ease > 1.5).all()
        top_means = calibrated.score.top_means(found["anomaly_map"])
        with torch.no_grad():
            global_terms = calibrated.score.global_terms(calibrated.stack(torch.as_tensor(blurred)))
        maps_alone = calibrated.score.map_scores(top_means, torch.zeros(len(ease)))
        torch.testing.assert_close(found["map_scores"], maps_alone + 2 * (ease - 1.5))
        # these slices are no volume's
        counted = global_terms.clamp(max=1.5) + 0.25 * torch.log1p(4 * (global_terms - 1.5).clamp(min=0))
        joined = 4 * (torch.logaddexp(found["map_scores"] / 4, 3 * counted / 4) - math.log(2))
        torch.testing.assert_close(found["slice_scores"], joined)

    @double_precision()
    def test_score_does_not_depend_on_neighbours_or_order(self, calibrated: Detector, normals: Tensor) -> None:
        # images in other batches go through other sums, whose rounding the network amplifies
        detector = copy.deepcopy(calibrated).double()
        extremes = torch.stack([torch.zeros(1, SIZE, SIZE), torch.ones(1, SIZE, SIZE), 1e-3 * normals[0]])
        images = torch.cat([normals[::3].double(), extremes])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            each = [detector.maps(image[None]) for image in images]
            together, shuffled = detector.maps(images), detector.maps(images[order])
        for name, found in together.items():
            alone = torch.cat([maps[name] for maps in each])
            torch.testing.assert_close(found, alone, **EXACT)
            torch.testing.assert_close(shuffled[name], alone[order], **EXACT)
        one, other = torch.cat([maps["slice_scores"] for maps in each]), together["slice_scores"]
        assert torch.equal(one.argsort(), other.argsort())

    def test_checkpoint_gives_equal_maps_scores_and_thresholds(
        self, calibrated: Detector, normals: Tensor, tmp_path: Path
    ) -> None:
        torch.save({"model": calibrated.state_dict()}, tmp_path / "model.pt")
        state = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
        torch.manual_seed(9)
        network = AEFlow(Encoder(stages=[1, 2], weights="checkpoint"), n_steps=4, seed=5)
        loaded = Detector(network, Score(3, top_fractions=[1.0], case_top_fraction=1.0)).eval()
        loaded.load_state_dict(state)
        with torch.no_grad():
            expected, found = calibrated.maps(normals), loaded.maps(normals)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        scores = {"axial": expected["slice_scores"]}
        assert torch.equal(loaded.score.case_score(scores), calibrated.score.case_score(scores))
        assert loaded.score.thresholds == calibrated.score.thresholds
        assert all(math.isfinite(value) for value in loaded.score.thresholds.values())
        for name in ("term_mean", "term_std", "map_std"):
            assert torch.isfinite(loaded.score.get_buffer(name)).all(), name


def minus_log_density(latent: Tensor) -> Tensor:
    """Of N(0, I), per channel; without the log-determinant."""
    return (0.5 * latent**2 + 0.5 * math.log(2 * math.pi)).mean(dim=1, keepdim=True)


@pytest.mark.parametrize("flow_term", ["likelihood", "latent"])
@pytest.mark.parametrize("stages", [(3,), (2, 3)])
@double_precision()
def test_terms_and_map_are_the_stated_formula(stages: tuple[int, ...], flow_term: str) -> None:
    detector, images = a_detector(stages, flow_term, beta=0.3, level_weight=0.5), blobs(2)
    score = detector.score
    score.term_mean.copy_(torch.linspace(1, 2, len(stages) + 1))
    score.term_std.copy_(torch.linspace(0.5, 3, len(stages) + 1))
    score.map_std.fill_(0.7)
    with torch.no_grad():
        output = detector.network(images)
        flows = [-m for m in output.log_likelihoods]
        if flow_term == "latent":
            flows = [minus_log_density(latent) for latent in output.latents]
        terms = [F.interpolate(m, size=(SIZE, SIZE), mode="bilinear") for m in flows]
        terms.append(1 - ssim_map(output.reconstruction, images))
        torch.testing.assert_close(detector.terms(output, images), torch.cat(terms, dim=1), **EXACT)
        standard = [(t - m) / s for t, m, s in zip(terms, score.term_mean, score.term_std, strict=True)]
        flow = sum(standard[:-1]) / len(stages)
        high = (0.3 * flow + 0.7 * standard[-1]) / 0.7
        expected = high - 0.5 * high.mean(dim=(1, 2, 3), keepdim=True)
        torch.testing.assert_close(detector(images), expected, **EXACT)


@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
@double_precision()
def test_published_score_is_the_published_formula_per_dimension(beta: float) -> None:
    detector, images = a_detector((3,), beta=beta, published=True), blobs(2)
    with torch.no_grad():
        output = detector.network(images)
        flow = F.interpolate(minus_log_density(output.latents[0]), size=(SIZE, SIZE), mode="bilinear")
        expected = beta * flow + (1 - beta) * -ssim_map(output.reconstruction, images)
        torch.testing.assert_close(detector(images), expected, **EXACT)


def test_published_score_is_finite_at_the_published_size_and_has_no_log_determinant() -> None:
    network = AEFlow(Encoder(stages=[3], weights="random"), n_steps=1)
    detector = Detector(network, Score(2, published=True))
    generator = torch.Generator().manual_seed(0)
    latent = 10 * torch.randn(1, 1024, 16, 16, generator=generator)
    image = torch.rand(1, 1, 256, 256, generator=generator)

    def map_of(latent: Tensor) -> Tensor:
        output = AEFlowOutput([latent], [torch.full((1, 1, 16, 16), torch.nan)], image)
        return detector.score.anomaly_map(detector.score.stack(detector.terms(output, image), foreground_of(image)))

    anomaly_map = map_of(latent)
    assert torch.isfinite(anomaly_map).all()
    assert anomaly_map.std() > 0.1  # 90 % of it is not a constant
    assert (map_of(1.1 * latent) > anomaly_map).all()


@pytest.mark.parametrize("flow_term", ["likelihood", "latent"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_all_maps(in_channels: int, flow_term: str) -> None:
    detector = a_detector(in_channels=in_channels, flow_term=flow_term, level_weight=0.5)
    detector.score.dissimilarity_norm.mean.fill_(0.9)
    image = torch.rand(2, in_channels, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = detector.maps(image)
        stack, complete = detector.infer(image)
        output = detector.network(image)
        alone = detector(image)
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        "anomaly_map": (2, 1, 64, 96),
        "slice_scores": (2,),
        "ease": (2,),
        "map_scores": (2,),
        "global_terms": (2,),
        "reconstruction": (2, in_channels, 64, 96),
        "residual": (2, 1, 64, 96),
        "log_likelihood": (2, 1, 64, 96),
    }
    expected = {**detector.score(stack)._asdict(), **complete}
    assert all(torch.equal(value, expected[name]) for name, value in maps.items())
    # images of their own stay as they are
    assert all(torch.equal(value, maps[name]) for name, value in detector.finish(stack)._asdict().items())
    assert torch.equal(maps["ease"], detector.score.ease(stack))
    assert torch.equal(maps["anomaly_map"], alone)
    assert torch.equal(maps["reconstruction"], output.reconstruction)
    residual = (image - output.reconstruction).abs().sum(dim=1, keepdim=True) / in_channels
    torch.testing.assert_close(maps["residual"], residual)
    fine, coarse = (F.interpolate(m, size=(64, 96), mode="bilinear") for m in output.log_likelihoods)
    torch.testing.assert_close(maps["log_likelihood"], (fine + coarse) / 2)


def test_stack_takes_kept_features_and_places() -> None:
    detector, image = a_detector(), blobs(3)
    places = Places(["coronal"] * 3, torch.tensor([0.1, 0.5, 0.9]))
    with torch.no_grad():
        features = detector.network.encoder(image)
        computed, kept = detector.stack(image, places), detector.stack(image, places, features)
        black = detector.stack(image, places, [0 * stage for stage in features])
    assert torch.equal(kept.weighted_sum, computed.weighted_sum)
    assert not torch.equal(black.weighted_sum, computed.weighted_sum)  # they are used
    assert computed.places is places


@double_precision()
def test_dissimilarity_counts_where_there_is_foreground() -> None:
    detector = a_detector()
    image = torch.zeros(2, 1, SIZE, SIZE)
    image[0, :, 8:40, 16:48] = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.01
    with torch.no_grad():
        difference = 1 - ssim_map(detector.network(image).reconstruction, image)
        dissimilarity = detector.stack(image).dissimilarity
    expected = difference[0, :, 8:40, 16:48].mean().item()
    assert dissimilarity[0].item() == pytest.approx(expected, rel=1e-9)
    assert dissimilarity[1].item() == 0  # of a black slice nothing counts


def test_places_are_read_from_a_batch() -> None:
    places = places_of({"axis": ["axial", "coronal"], "relative_position": [0.25, 1.0]})
    assert places is not None
    assert places.planes == ["axial", "coronal"]
    assert places.positions.tolist() == [0.25, 1.0]
    assert places_of({"case": ["a"]}) is None


class TestCalibrate:
    @pytest.mark.parametrize("flow_term", ["likelihood", "latent"])
    @double_precision()
    def test_terms_and_map_of_the_normals_become_standard(self, flow_term: str) -> None:
        detector, images = a_detector(flow_term=flow_term), blobs(6)
        scores = calibrate(detector, batches_of(images, 4))
        assert len(scores) == len(images)
        assert max(scores.values()) == pytest.approx(float(detector.score.case_threshold), abs=1e-4)
        with torch.no_grad():
            terms = detector.terms(detector.network(images), images).transpose(0, 1).flatten(1)
            anomaly_map = detector(images)
        standard = (terms - detector.score.term_mean[:, None]) / detector.score.term_std[:, None]
        torch.testing.assert_close(standard.mean(dim=1), torch.zeros(3), **EXACT)
        torch.testing.assert_close(standard.std(dim=1, correction=0), torch.ones(3), **EXACT)
        assert anomaly_map.mean().item() == pytest.approx(0, abs=1e-9)
        assert anomaly_map.std(correction=0).item() == pytest.approx(1, abs=1e-9)

    @pytest.mark.parametrize(("flow_term", "published"), [("likelihood", False), ("latent", False), ("latent", True)])
    @double_precision()
    def test_score_is_calibrated_on_the_terms(self, flow_term: str, published: bool) -> None:
        options: dict[str, Any] = {
            "published": published,
            "position_normalisation": True,
            "top_fractions": [0.05, 1.0],
        }
        detector, images, fitted = a_detector(flow_term=flow_term, **options), blobs(14), 1 - blobs(4)
        heights = torch.linspace(0, 1, 2).repeat(7)
        batches = batches_of(images, 4, slices_per_case=2)
        for batch, start in zip(batches, range(0, 14, 4), strict=True):
            n = len(batch["image"])
            batch["axis"], batch["relative_position"] = ["coronal"] * n, heights[start : start + n]
        fits = [{**batch, "patient": ["one"] * 2} for batch in batches_of(fitted, 2)]
        calibrate(detector, batches, specificity=0.7, fitted=fits)
        alone = Score(3, **{"level_weight": 1.0, "case_top_fraction": 1.0, **options})
        with torch.no_grad():
            terms, of_fitted = (detector.terms(detector.network(each), each) for each in (images, fitted))
            pooled = pooled_features(detector.network.encoder(images))
        cases = [case for batch in batches for case in batch["case"]]
        places = Places(["coronal"] * 14, heights)
        held_out = NormalSlices(terms, foreground_of(images), cases, cases, places, pooled)
        others = NormalSlices(of_fitted, foreground_of(fitted), ["one"] * 4, list("abcd"), None)
        calibrate_score(alone, [held_out], 0.7, [others])
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(detector.score.state_dict()[name], value, **EXACT)

    @double_precision()
    def test_thresholds_are_those_of_the_normals_own_scores(self) -> None:
        detector, images = a_detector(top_fractions=[0.05], case_top_fraction=0.4), blobs(12)
        calibrate(detector, batches_of(images, 5, slices_per_case=3), specificity=0.6)
        with torch.no_grad():
            found = detector.maps(images)
        slices, score = found["slice_scores"], detector.score
        cases = [slices[i : i + 3].sort(descending=True).values[:2].mean().item() for i in range(0, 12, 3)]
        assert score.case_threshold.item() == pytest.approx(raised(sorted(cases)[3 - 1]), abs=1e-9)  # ceil(5 * 0.6)
        assert score.slice_threshold.item() == pytest.approx(raised(sorted(slices.tolist())[8 - 1]), abs=1e-9)
        peaks = found["anomaly_map"].flatten(1).amax(dim=1)
        assert score.map_threshold.item() == pytest.approx(raised(sorted(peaks.tolist())[8 - 1]), abs=1e-9)

    @double_precision()
    def test_nothing_depends_on_the_batch_size(self) -> None:
        images, found = blobs(9), []
        for batch_size in (1, 4, 9):
            detector = a_detector()
            calibrate(detector, batches_of(images, batch_size, slices_per_case=2), specificity=0.5)
            found.append(state_of(detector.score))
        for other in found[1:]:
            for name, value in found[0].items():
                torch.testing.assert_close(other[name], value, **EXACT)

    @pytest.mark.parametrize("flow_term", ["likelihood", "latent"])
    @double_precision()
    def test_an_empty_background_does_not_count(self, flow_term: str) -> None:
        # a head in the middle of empty margins, which are wider than nearly all that its features see
        found = []
        for margin in (48, 64):
            detector, images = a_detector((1, 2), flow_term), F.pad(blobs(2), [margin] * 4)
            calibrate(detector, batches_of(images, 2))
            found.append(detector.score)
            with torch.no_grad():
                inside = detector(images)[images > 0]
            assert inside.mean().item() == pytest.approx(0, abs=1e-9)
            assert inside.std(correction=0).item() == pytest.approx(1, abs=1e-9)
        narrow, wide = found
        torch.testing.assert_close(wide.term_std, narrow.term_std, rtol=1e-3, atol=0)
        torch.testing.assert_close(wide.map_std, narrow.map_std, rtol=1e-3, atol=0)
        shift = (wide.term_mean - narrow.term_mean) / narrow.term_std
        torch.testing.assert_close(shift, torch.zeros(3), rtol=0, atol=1e-3)

    @double_precision()
    def test_any_channel_above_zero_is_foreground(self) -> None:
        detector = a_detector(in_channels=2)
        half = blobs(4)
        half[..., 32:] = 0
        images = torch.cat([half, half.flip(3)], dim=1)  # together they leave nothing empty
        calibrate(detector, batches_of(images, 2))
        with torch.no_grad():
            assert detector(images).std(correction=0).item() == pytest.approx(1, abs=1e-9)

    def test_kept_features_give_the_same(self) -> None:
        images, computed, kept = blobs(6), a_detector(), a_detector()
        batches = batches_of(images, 3)
        calibrate(computed, batches)
        calibrate(kept, [{**b, "features": kept.network.encoder(b["image"])} for b in batches])
        assert is_unchanged(kept.score, state_of(computed.score))
        calibrate(kept, [{**b, "features": [0 * f for f in kept.network.encoder(b["image"])]} for b in batches])
        assert not torch.equal(kept.score.term_mean, computed.score.term_mean)  # they are used

    @pytest.mark.parametrize("training", [True, False])
    def test_mode_and_the_network_stay(self, training: bool) -> None:
        # has batch norm, and feature norms that are not fitted yet
        detector = a_detector(subnet="resnet").train(training)
        before = state_of(detector)
        calibrate(detector, batches_of(blobs(), 5))
        assert detector.training == detector.network.flows.training == training
        assert not detector.network.encoder.training
        changed = {key for key, value in detector.state_dict().items() if not torch.equal(value, before[key])}
        fixed = {
            *(
                f"score.global_term.{name}"
                for name in ("bend", "weight", "softness", "is_of_training", "fitted_whitening")
            ),
            *(name for name in before if name.startswith("score.") and "_norm." in name),
            "score.of_mean_map",
        }
        assert changed - fixed == {name for name in before if name.startswith("score.")} - fixed

    def test_constant_reconstruction_term_keeps_its_unit(self) -> None:
        detector, images = a_detector(), torch.full((3, 1, SIZE, SIZE), 0.5)
        to_image: Any = detector.network.decoder.to_image[0]
        to_image.weight.data.zero_()
        to_image.bias.data.zero_()
        calibrate(detector, batches_of(images, 2))
        assert all(torch.isfinite(value).all() for value in detector.score.state_dict().values())
        assert detector.score.term_std[-1].item() == 1
        with torch.no_grad():
            assert torch.isfinite(detector(blobs())).all()

    @pytest.mark.parametrize("published", [True, False])
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("no images", r"held-out normal.*; got none"),
            ("diverged", r"not finite.*: the training diverged\. Lower the learning rate.*The model was not saved"),
            ("specificity", r"has to be in \(0, 1\), as 0\.95; got 1\.0"),
            ("case names", "argument"),
            ("not finite", r"The image of case case_3 holds NaN or infinite values: mend it"),
            ("iterated once", "three times: give a list or a DataLoader, no generator"),
            ("fitted iterated once", "three times: give a list or a DataLoader, no generator"),
        ],
    )
    def test_detector_is_as_before_an_error(self, published: bool, fault: str, message: str) -> None:
        detector = a_detector(published=published, position_normalisation=True)
        calibrate(detector, batches_of(blobs(4), 2))
        detector.train()
        batches: Any = batches_of(1 - blobs(4), 2)  # other images, so other statistics
        fitted: Any = ()
        specificity = 0.95
        if fault == "no images":
            batches = []
        elif fault == "diverged":
            next(detector.network.flows.parameters()).data.fill_(torch.nan)
        elif fault == "specificity":
            specificity = 1.0
        elif fault == "case names":
            batches[-1]["case"] = ["one"]
        elif fault == "not finite":
            batches[-1]["image"][-1, 0, 0, 0] = torch.nan
        elif fault == "iterated once":
            batches = iter(batches)
        else:
            fitted = iter(batches)
        before = state_of(detector.score)
        with pytest.raises(ValueError, match=message):
            calibrate(detector, batches, specificity, fitted)
        assert is_unchanged(detector.score, before)
        assert detector.training
        assert detector.network.flows.training

    def test_fitted_normals_that_are_not_finite_are_refused(self) -> None:
        detector, broken = a_detector(position_normalisation=True), batches_of(blobs(4), 2)
        broken[-1]["image"] = torch.full_like(broken[-1]["image"], torch.inf)
        before = state_of(detector)
        with pytest.raises(ValueError, match=r"The image of case case_2 holds NaN or infinite values: mend it"):
            calibrate(detector, batches_of(blobs(4), 2), fitted=broken)
        assert is_unchanged(detector, before)

    def test_an_interruption_leaves_the_detector_as_it_was(self) -> None:
        class Interrupted(list[dict[str, Any]]):
            times = 0

            def __iter__(self) -> Any:
                self.times += 1
                if self.times == 3:
                    raise KeyboardInterrupt
                return super().__iter__()

        detector = a_detector().train()
        before = state_of(detector)
        with pytest.raises(KeyboardInterrupt):
            calibrate(detector, Interrupted(batches_of(blobs(4), 2)))
        assert is_unchanged(detector, before)
        assert detector.training


class TestVolumes:
    """What calibration knows of a slice is what evaluation and inference know of it."""

    slicer = Slicer(["axial", "coronal", "sagittal"], image_size=[64, 64], min_foreground=0.05)

    @staticmethod
    def volume() -> Tensor:
        volume = torch.zeros(1, 40, 36, 20)
        volume[:, 6:34, 5:30, 3:17] = torch.rand(1, 28, 25, 14, generator=torch.Generator().manual_seed(0))
        return volume

    def test_a_slice_has_one_height_in_training_and_inference(self) -> None:
        lesion = torch.zeros(1, 40, 36, 20)
        lesion[:, 10:14, 10:14, 5:8] = 1
        item = {"image": self.volume(), "case": "a", "label": 0}
        normal, beside = (
            SliceDataset([each], lambda read: read, self.slicer)
            for each in (item, {**item, "lesion": lesion, "label": 1})
        )
        seen: dict[tuple[str, float], int] = {}

        def network(slices: Tensor, places: Places) -> Tensor:
            for plane, height in zip(places.planes, places.positions.tolist(), strict=True):
                seen[plane, round(height, 5)] = seen.get((plane, round(height, 5)), 0) + 1
            return slices

        SlicedInferer(self.slicer, batch_size=3)(self.volume()[None], network)
        heights = {(e["axis"], e["slice"]): round(e["relative_position"], 5) for e in normal.index}
        assert seen == {(plane, height): 1 for (plane, _), height in heights.items()}
        # a slice's height does not change because its neighbours hold a lesion
        assert 0 < len(beside) < len(normal)
        assert all(heights[e["axis"], e["slice"]] == round(e["relative_position"], 5) for e in beside.index)

    @double_precision()
    def test_maps_and_scores_are_those_of_the_whole_stack(self) -> None:
        score = Score(3, top_fractions=[0.1, 1.0], slice_sigma=0.1)
        detector = Detector(a_network(), score).eval()
        generator = torch.Generator().manual_seed(0)
        score.position_norm.mean.normal_(generator=generator)
        score.position_norm.std.uniform_(0.5, 2, generator=generator)
        score.dissimilarity_norm.mean.copy_(torch.linspace(0, 5, 32).view(1, 32, 1, 1))  # the higher, the easier
        for name in ("map", "slice", "case"):
            score.get_buffer(f"{name}_threshold").fill_(1.0)
        volume, slicer = self.volume(), Slicer(["axial"], image_size=[64, 64], fit="pad", min_foreground=0.05)
        chosen = slicer.chosen(volume, "axial")
        slices, places = slicer.slices(volume, "axial", chosen), slicer.places(chosen, "axial")
        with torch.no_grad():
            stack = detector.stack(slices, places)
            expected = detector.finish(stack)
            alone = detector(slices, places)
            found = SlicedInferer(slicer, batch_size=3)(volume[None], detector)
        assert not torch.allclose(expected.anomaly_map, alone, atol=0.1)  # neighbours count
        ease = score.dissimilarity_norm.mean[0, :, 0, 0].max() * places.positions - stack.dissimilarity
        torch.testing.assert_close(expected.ease, ease, rtol=0, atol=1e-6)  # heights are in single precision
        maps_alone = score.map_scores(score.top_means(expected.anomaly_map), torch.zeros(len(ease)))
        torch.testing.assert_close(
            expected.slice_scores - maps_alone, 2 * (expected.ease - 1.5).clamp_min(0), rtol=0, atol=1e-9
        )
        assert isinstance(found, dict)
        torch.testing.assert_close(found["slice_scores_axial"][0, chosen], expected.slice_scores, **EXACT)
        torch.testing.assert_close(found["ease_axial"][0, chosen], expected.ease, **EXACT)
        seen = slicer.slices(found["anomaly_map"][0], "axial", chosen)[..., 12:52, 14:50]
        torch.testing.assert_close(seen, expected.anomaly_map[..., 12:52, 14:50], **EXACT)
        case_score = score.case_score({"axial": expected.slice_scores}).item()
        assert found["anomaly_score"].item() == pytest.approx(case_score, abs=1e-9)
        assert set(found) == {
            "anomaly_map", "reconstruction", "residual", "log_likelihood", "slice_scores_axial", "ease_axial",
            "anomaly_score", "map_score", "global_term", "case_threshold", "slice_threshold", "map_threshold",
            "p_value", "n_held_out",
        }  # fmt: skip

    @double_precision()
    def test_of_several_planes_slices_are_scored_by_the_mean_of_the_maps(self) -> None:
        """In the calibration as in inference, so that thresholds are those of the same scores."""
        volumes = {f"{number}.nii": (0.5 + number / 10) * self.volume().roll(number, dims=2) for number in range(5)}
        items = [{"image": name, "case": name, "label": 0} for name in volumes]
        dataset = SliceDataset(items, lambda item: {"image": volumes[item["image"]]}, self.slicer)
        batches = list(DataLoader(dataset, batch_size=7))
        plain = {"position_normalisation": False, "ease_weight": 0.0, "global_term": False}
        together, apart = (Detector(a_network(), Score(3, **plain)).eval() for _ in range(2))
        expected = calibrate(together, batches, slicer=self.slicer)
        assert expected != calibrate(apart, batches)
        assert together.score.of_mean_map
        assert not apart.score.of_mean_map
        peaks: list[float] = []
        for name, volume in volumes.items():
            with torch.no_grad():
                found = SlicedInferer(self.slicer, batch_size=3)(volume[None], together)
                separately = SlicedInferer(self.slicer, batch_size=3)(volume[None], apart)
            assert isinstance(found, dict)
            assert isinstance(separately, dict)
            # relative positions, by which neighbours are blurred, are in single precision
            assert found["anomaly_score"].item() == pytest.approx(expected[name], abs=1e-6)
            torch.testing.assert_close(found["anomaly_map"], separately["anomaly_map"], **EXACT)
            for plane in self.slicer.axes:
                chosen = self.slicer.chosen(volume, plane)
                mean = self.slicer.slices(found["anomaly_map"][0], plane, chosen)
                scores = together.score.map_scores(together.score.top_means(mean), torch.zeros(len(mean)))
                torch.testing.assert_close(found[f"slice_scores_{plane}"][0, chosen], scores, **EXACT)
                axis = 1 + GEOMETRY[plane].axis  # masks are of the map at the volume's size
                peaks += found["anomaly_map"][0].movedim(axis, 0)[chosen].flatten(1).amax(dim=1).tolist()
        rank = math.ceil(0.95 * (len(peaks) + 1))
        assert together.score.map_threshold.item() == pytest.approx(raised(sorted(peaks)[rank - 1]), abs=1e-5)

    def test_pictures_of_a_model_of_several_planes_are_scored_by_themselves(self) -> None:
        pictures = {f"{number}.png": self.volume()[..., number : number + 1] for number in range(5, 12)}
        items = [{"image": name, "case": name, "label": 0} for name in pictures]
        dataset = SliceDataset(items, lambda item: {"image": pictures[item["image"]]}, self.slicer)
        detector = Detector(a_network(), Score(3, global_term=False)).eval()
        calibrate(detector, list(DataLoader(dataset, batch_size=4)), slicer=self.slicer)
        assert not detector.score.of_mean_map

    def test_a_detector_that_is_not_calibrated_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"not calibrated\. Finish its training with --resume"):
            SlicedInferer(self.slicer)(self.volume()[None], a_detector())

    @staticmethod
    def batches(n_cases: int, n_slices: int = 5) -> list[dict[str, Any]]:
        """Cases of a batch each, whose left is flat, which the network finds easy or hard."""
        generator = torch.Generator().manual_seed(n_cases)
        coarse = torch.randn(n_cases * n_slices, 1, 8, 8, generator=generator)
        images = F.interpolate(coarse, size=(64, 64), mode="bicubic").sigmoid()
        images[..., :16] = 0.5
        return [
            {
                "image": images[start : start + n_slices],
                "case": [f"case_{start}"] * n_slices,
                "axis": ["axial"] * n_slices,
                "relative_position": torch.linspace(0, 1, n_slices),
            }
            for start in range(0, len(images), n_slices)
        ]

    @staticmethod
    def finished(detector: Detector, batch: dict[str, Any]) -> SliceScores:
        return detector.finish(detector.stack(batch["image"], places_of(batch)))

    def test_maps_of_new_normals_are_standard_everywhere(self) -> None:
        detector = Detector(a_network(), Score(3, top_fractions=[0.1, 1.0])).eval()
        calibrate(detector, self.batches(12))
        with torch.no_grad():
            found = torch.cat([self.finished(detector, batch).anomaly_map for batch in self.batches(11)])
        for part in (found[..., :12], found[..., 28:]):
            assert part.mean().item() == pytest.approx(0, abs=0.35)
            assert part.std().item() == pytest.approx(1, abs=0.3)

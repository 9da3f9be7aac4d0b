import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from score.precision import double_precision
from torch import Tensor

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.engine.inference.inferer import SlicedInferer
from aeflow_monai.engine.inference.saliency import require_saliency, saliency
from aeflow_monai.geometry import Places
from aeflow_monai.network.aeflow import AEFlow
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.score.score import Score

SIZE = 32
MODULE = sys.modules[saliency.__module__]


def images(n: int = 3, channels: int = 1) -> Tensor:
    return torch.rand(n, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def a_detector(channels: int = 1) -> Detector:
    """Not trained; coarse features, whose resolution a gradient exceeds."""
    torch.manual_seed(0)
    network = AEFlow(Encoder(in_channels=channels), n_steps=1, hidden_channels=4)
    return Detector(network, Score(3, top_fractions=[0.2], case_top_fraction=1.0)).eval()


@pytest.fixture(scope="module")
def detector() -> Detector:
    return a_detector()


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_N_SAMPLES", 3)


@pytest.fixture(autouse=True)
def _parameters_keep_no_gradient(detector: Detector) -> Iterator[None]:
    yield
    assert all(parameter.grad is None for parameter in detector.parameters())


@pytest.mark.parametrize("kind", ["plain", "smooth"])
class TestSaliency:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_is_one_finite_map_for_each_image(self, kind: str, channels: int) -> None:
        with torch.no_grad():  # as the evaluator runs
            found = saliency(a_detector(channels), images(channels=channels), kind=kind)
        assert found.shape == (3, 1, SIZE, SIZE)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        assert (found >= 0).all()
        assert (found.flatten(1).std(dim=1) > 0).all()
        assert not found.requires_grad

    def test_is_finite_where_few_patients_tell_no_ease(self, kind: str) -> None:
        detector = a_detector()
        detector.score.dissimilarity_norm.set_unknown()
        assert torch.isfinite(saliency(detector, images(), kind=kind)).all()
        assert not detector.maps(images())["ease"].any()

    def test_is_the_same_again_and_draws_nothing(self, detector: Detector, kind: str) -> None:
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = saliency(detector, images(), kind=kind)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(saliency(detector, images(), kind=kind), first)

    @double_precision()
    def test_does_not_depend_on_neighbours_or_order(self, detector: Detector, kind: str) -> None:
        detector = copy.deepcopy(detector).double()
        batch = torch.cat([images(), torch.zeros(1, 1, SIZE, SIZE), 5 * images()])  # others of any range
        together = saliency(detector, batch, kind=kind)
        alone = torch.cat([saliency(detector, image[None], kind=kind) for image in batch])
        backwards = saliency(detector, batch.flip(0), kind=kind).flip(0)
        scale = float(together.mean())
        torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-6 * scale)
        torch.testing.assert_close(backwards, together, rtol=1e-6, atol=1e-6 * scale)

    def test_is_that_at_the_places_of_the_slices(self, kind: str) -> None:
        detector = a_detector()
        detector.score.position_norm.std[:, 16:].fill_(2.0)  # half as much in the upper half
        low, high = (Places(["axial"] * 3, torch.full((3,), height)) for height in (0.1, 0.9))
        expected = saliency(detector, images(), low, kind)
        found = saliency(detector, images(), high, kind)
        assert found.mean().item() == pytest.approx(expected.mean().item() / 2, rel=1e-3)

    def test_leaves_earlier_gradients_and_the_mode_alone(self, kind: str) -> None:
        detector = a_detector()
        kept = [torch.full_like(p, 3.0) for p in detector.parameters() if p.requires_grad]
        for parameter, gradient in zip((p for p in detector.parameters() if p.requires_grad), kept, strict=True):
            parameter.grad = gradient.clone()
        before = {name: value.clone() for name, value in detector.state_dict().items()}
        image = images()
        saliency(detector, image, kind=kind)
        assert not image.requires_grad
        assert image.grad is None
        found = [p.grad for p in detector.parameters() if p.requires_grad]
        assert all(torch.equal(one, other) for one, other in zip(found, kept, strict=True) if one is not None)
        assert not any(gradient is None for gradient in found)
        assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
        assert not any(module.training for module in detector.modules())


def slice_score(detector: Detector, image: Tensor) -> float:
    with torch.no_grad():
        return detector.maps(image)["slice_scores"].item()


@double_precision()
def test_plain_is_the_change_of_the_score_with_each_pixel(detector: Detector) -> None:
    # differences are exact in double precision only, which the score itself does not use
    double, image = copy.deepcopy(detector).double(), images(1)
    found = saliency(double, image)[0, 0]
    brightest = divmod(int(found.argmax()), SIZE)
    for row, column in (brightest, (0, 0), (5, 9), (16, 16), (27, 3)):
        step = torch.zeros_like(image)
        step[..., row, column] = 1e-6
        change = (slice_score(double, image + step) - slice_score(double, image - step)) / 2e-6
        assert found[row, column].item() == pytest.approx(abs(change), rel=1e-3, abs=1e-5 * float(found.max()))


@double_precision()
def test_smooth_is_plain_of_the_mean_gradient(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, image = copy.deepcopy(detector).double(), images(2)
    plain = saliency(detector, image)
    # without noise the copies are equal, however many there are
    monkeypatch.setattr(MODULE, "_NOISE", 0.0)
    for n_samples in (1, 4):
        monkeypatch.setattr(MODULE, "_N_SAMPLES", n_samples)
        torch.testing.assert_close(saliency(detector, image, kind="smooth"), plain, rtol=1e-9, atol=1e-9)
    # with noise it is another map, of the same size whatever the number of copies
    monkeypatch.setattr(MODULE, "_NOISE", 0.02)
    maps = []
    for n_samples in (4, 16):
        monkeypatch.setattr(MODULE, "_N_SAMPLES", n_samples)
        maps.append(saliency(detector, image, kind="smooth"))
    few, many = maps
    assert not torch.allclose(few, plain, rtol=0.01)
    assert 0.5 < (many.mean() / few.mean()).item() < 1.2


@double_precision()
def test_noise_goes_with_the_range_of_the_image_and_leaves_black_alone(detector: Detector) -> None:
    detector = copy.deepcopy(detector).double()
    flat = torch.full((1, 1, SIZE, SIZE), 0.5)  # a range of 0: no noise
    torch.testing.assert_close(saliency(detector, flat, kind="smooth"), saliency(detector, flat), rtol=1e-9, atol=1e-9)
    seen: list[Tensor] = []
    hook = detector.network.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    try:
        half = images(1)
        half[..., :16] = 0
        saliency(detector, half, kind="smooth")
    finally:
        hook.remove()
    assert len(seen) == 3
    for image in seen:
        assert not image[..., :16].any()
        noise = (image - half)[..., 16:]
        assert noise.std().item() == pytest.approx(0.05 * float(half.max()), rel=0.2)
    assert not torch.equal(seen[0], seen[1])


class TestInferer:
    slicer = Slicer(["axial"], image_size=[SIZE, SIZE])

    @staticmethod
    def calibrated() -> Detector:
        detector = a_detector()
        for name in detector.score.thresholds:
            detector.score.get_buffer(name).fill_(1.0)
        return detector

    def infer(self, kind: str | None, detector: Detector | None = None) -> dict[str, Any]:
        volume = images(3).permute(1, 2, 3, 0)[None]
        with torch.no_grad():
            found = SlicedInferer(self.slicer, batch_size=2, saliency=kind)(volume, detector or self.calibrated())
        assert isinstance(found, dict)
        return found

    @pytest.mark.parametrize("kind", ["plain", "smooth"])
    def test_saliency_changes_no_other_map(self, kind: str) -> None:
        expected, found = self.infer(None), self.infer(kind)
        assert found.keys() - expected.keys() == {"saliency"}
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)
        assert found["saliency"].shape == expected["anomaly_map"].shape
        assert (found["saliency"].flatten(0, 3).std(dim=0) > 0).all()

    def test_without_saliency_no_graph_is_kept(self) -> None:
        features: list[bool] = []
        detector = self.calibrated()
        detector.network.encoder.register_forward_hook(
            lambda module, given, stages: features.extend(stage.requires_grad for stage in stages)
        )
        found = self.infer(None, detector)
        assert not any(value.requires_grad for value in found.values())
        assert not features  # the maps are a folded copy's
        found = self.infer("plain", detector)
        assert not any(value.requires_grad for value in found.values())
        assert features
        assert all(features)

    def test_unknown_kind_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"Unknown saliency 'fine': choose one of \['plain', 'smooth'\], or null"):
            SlicedInferer(self.slicer, saliency="fine")


def test_unknown_kind_is_named(detector: Detector) -> None:
    require_saliency(None)
    with pytest.raises(ValueError, match=r"Unknown saliency 'fine': choose one of \['plain', 'smooth'\], or null"):
        saliency(detector, images(), kind="fine")

import copy
from collections.abc import Iterator

import pytest
import torch
from aeflow_monai.score.scoring import AnomalyScorer
from torch import Tensor

from aeflow_monai.engine.saliency import MapScorer
from aeflow_monai.network.aeflow import AEFlow
from aeflow_monai.network.encoder import Encoder

SIZE = 32


def images(n: int = 3, channels: int = 1) -> Tensor:
    return torch.rand(n, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def scorer() -> AnomalyScorer:
    """Not trained; coarse features, whose resolution a gradient exceeds."""
    torch.manual_seed(0)
    return AnomalyScorer(AEFlow(Encoder(), n_steps=1, hidden_channels=4), slice_shares=[0.2]).eval()


@pytest.fixture(autouse=True)
def _parameters_keep_no_gradient(scorer: AnomalyScorer) -> Iterator[None]:
    yield
    assert all(parameter.grad is None for parameter in scorer.parameters())


def network(scorer: AnomalyScorer, saliency: str | None) -> MapScorer:
    return MapScorer(scorer, saliency, n_samples=3)


def test_the_scorer_is_shared_and_its_maps_are_given_as_they_are(scorer: AnomalyScorer) -> None:
    plain = MapScorer(scorer)
    assert plain.scorer is scorer
    with torch.no_grad():
        expected = scorer.maps(images())
        found = plain(images())
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("saliency", ["plain", "smooth"])
class TestSaliency:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_is_one_finite_map_for_each_image(self, saliency: str, channels: int) -> None:
        torch.manual_seed(0)
        scorer = AnomalyScorer(AEFlow(Encoder(in_channels=channels), n_steps=1, hidden_channels=4)).eval()
        with torch.no_grad():  # as the evaluator runs
            found = network(scorer, saliency)(images(channels=channels))["saliency"]
        assert found.shape == (3, 1, SIZE, SIZE)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        assert (found >= 0).all()
        assert (found.flatten(1).std(dim=1) > 0).all()
        assert not found.requires_grad

    def test_is_finite_where_few_patients_tell_no_ease(self, saliency: str) -> None:
        scorer = AnomalyScorer(AEFlow(Encoder(), n_steps=1, hidden_channels=4)).eval()
        scorer.usual_dissimilarity.set_unknown()
        found = network(scorer, saliency)(images())
        assert torch.isfinite(found["saliency"]).all()
        assert not found["ease"].any()

    def test_changes_no_other_map(self, scorer: AnomalyScorer, saliency: str) -> None:
        with torch.no_grad():
            expected = scorer.maps(images())
            found = network(scorer, saliency)(images())
        assert list(found) == [*expected, "saliency"]
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_is_the_same_again_and_draws_nothing(self, scorer: AnomalyScorer, saliency: str) -> None:
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = network(scorer, saliency)(images())["saliency"]
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(network(scorer, saliency)(images())["saliency"], first)

    def test_does_not_depend_on_neighbours_or_order(self, scorer: AnomalyScorer, saliency: str) -> None:
        batch = torch.cat([images(), torch.zeros(1, 1, SIZE, SIZE), 5 * images()])  # others of any range
        together = network(scorer, saliency)(batch)["saliency"]
        alone = torch.cat([network(scorer, saliency)(image[None])["saliency"] for image in batch])
        backwards = network(scorer, saliency)(batch.flip(0))["saliency"].flip(0)
        scale = float(together.mean())
        torch.testing.assert_close(alone, together, rtol=1e-3, atol=3e-3 * scale)
        torch.testing.assert_close(backwards, together, rtol=1e-3, atol=3e-3 * scale)

    def test_leaves_earlier_gradients_and_the_mode_alone(self, saliency: str) -> None:
        torch.manual_seed(0)
        scorer = AnomalyScorer(AEFlow(Encoder(), n_steps=1, hidden_channels=4)).eval()
        kept = [torch.full_like(p, 3.0) for p in scorer.parameters() if p.requires_grad]
        for parameter, gradient in zip((p for p in scorer.parameters() if p.requires_grad), kept, strict=True):
            parameter.grad = gradient.clone()
        before = {name: value.clone() for name, value in scorer.state_dict().items()}
        image = images()
        network(scorer, saliency).eval()(image)
        assert not image.requires_grad
        assert image.grad is None
        found = [p.grad for p in scorer.parameters() if p.requires_grad]
        assert all(torch.equal(one, other) for one, other in zip(found, kept, strict=True) if one is not None)
        assert not any(gradient is None for gradient in found)
        assert all(torch.equal(value, before[name]) for name, value in scorer.state_dict().items())
        assert not any(module.training for module in scorer.modules())


def slice_score(scorer: AnomalyScorer, image: Tensor) -> float:
    with torch.no_grad():
        return scorer.maps(image)["slice_scores"].item()


def test_plain_is_the_change_of_the_score_with_each_pixel(
    scorer: AnomalyScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in double precision, which the score itself does not use: differences are then exact
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    double, image = copy.deepcopy(scorer).double(), images(1).double()
    found = network(double, "plain")(image)["saliency"][0, 0]
    brightest = divmod(int(found.argmax()), SIZE)
    for row, column in (brightest, (0, 0), (5, 9), (16, 16), (27, 3)):
        step = torch.zeros_like(image)
        step[..., row, column] = 1e-6
        change = (slice_score(double, image + step) - slice_score(double, image - step)) / 2e-6
        assert found[row, column].item() == pytest.approx(abs(change), rel=1e-3, abs=1e-5 * float(found.max()))


def test_smooth_is_plain_of_the_mean_gradient(scorer: AnomalyScorer) -> None:
    image = images(2)
    plain = network(scorer, "plain")(image)["saliency"]
    # without noise the copies are equal, however many there are
    for n_samples in (1, 4):
        found = MapScorer(scorer, "smooth", n_samples=n_samples, noise=0.0)(image)["saliency"]
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
    # with noise it is another map, of the same size whatever the number of copies
    few, many = (MapScorer(scorer, "smooth", n_samples=n, noise=0.02)(image)["saliency"] for n in (4, 16))
    assert not torch.allclose(few, plain, rtol=0.01)
    assert 0.5 < (many.mean() / few.mean()).item() < 1.2


def test_noise_goes_with_the_range_of_the_image(scorer: AnomalyScorer) -> None:
    flat = torch.full((1, 1, SIZE, SIZE), 0.5)  # a range of 0: no noise
    plain, smooth = (network(scorer, saliency)(flat)["saliency"] for saliency in ("plain", "smooth"))
    torch.testing.assert_close(smooth, plain, rtol=1e-4, atol=1e-6)


def test_without_saliency_no_graph_is_kept(scorer: AnomalyScorer) -> None:
    features: list[bool] = []
    hook = scorer.aeflow.encoder.register_forward_hook(
        lambda module, given, stages: features.extend(stage.requires_grad for stage in stages)
    )
    try:
        MapScorer(scorer)(images())
        assert features == [False, False]
        with torch.no_grad():
            network(scorer, "plain")(images())
        assert features == [False, False, False, False, True, True]  # the maps; the saliency
    finally:
        hook.remove()


def test_wrong_options_are_named(scorer: AnomalyScorer) -> None:
    with pytest.raises(ValueError, match=r"Unknown saliency 'fine': choose one of \['plain', 'smooth'\], or null"):
        MapScorer(scorer, "fine")
    with pytest.raises(ValueError, match=r"n_samples has to be 1 or more; got 0"):
        MapScorer(scorer, "smooth", n_samples=0)

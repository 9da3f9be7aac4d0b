import math
from typing import Any

import pytest
import torch

from aeflow_monai.network.flow import LatentFlow
from aeflow_monai.network.prior import MixturePrior
from aeflow_monai.network.flow import standard_normal_log_density


def latents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 6, 3, 4, generator=generator), torch.randn(2, 10, 2, 2, generator=generator)]


def test_log_ratio_is_the_difference_of_the_two_densities() -> None:
    prior = MixturePrior([6, 10], distance=0.8)
    for latent, mean, ratio in zip(latents(), prior.means, prior.log_ratios(latents()), strict=True):
        shifted = standard_normal_log_density(latent - mean.view(1, -1, 1, 1))
        expected = (shifted - standard_normal_log_density(latent)) / latent.shape[1]
        assert ratio.shape == expected.shape
        torch.testing.assert_close(ratio, expected)


def test_distance_is_per_channel_and_the_same_for_all_stages() -> None:
    prior = MixturePrior([6, 10], distance=1.5)
    for mean in prior.means:
        assert mean.square().mean().sqrt().item() == pytest.approx(1.5)


def test_half_precision_of_the_network_costs_the_ratio_nothing() -> None:
    prior = MixturePrior([6, 10])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = prior.log_ratios(latents())
    for one, other in zip(under_autocast, prior.log_ratios(latents()), strict=True):
        assert torch.equal(one, other)


def test_means_are_fixed_and_those_of_the_seed() -> None:
    prior = MixturePrior([6], seed=3)
    assert list(prior.parameters()) == []
    assert torch.equal(prior.means[0], MixturePrior([6], seed=3).means[0])
    assert not torch.equal(prior.means[0], MixturePrior([6], seed=4).means[0])


def test_flow_brings_labelled_features_to_their_component() -> None:
    torch.manual_seed(0)
    normal, abnormal = torch.randn(8, 4, 4, 4), torch.randn(8, 4, 4, 4) + torch.tensor([2.0, 0, 0, 0]).view(1, 4, 1, 1)
    flow, prior = LatentFlow(4, n_steps=4, hidden_channels=16), MixturePrior([4], distance=2.0)
    optimizer = torch.optim.Adam(flow.parameters(), 0.01)
    for _ in range(60):
        latent, log_abs_det = flow(torch.cat([normal, abnormal]))
        log_density = (standard_normal_log_density(latent) + log_abs_det) / 4
        (gain,) = prior.log_ratios([latent[8:]])
        loss = -log_density.mean() - 0.5 * gain.mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    flow.eval()
    with torch.no_grad():
        (ratio,) = prior.log_ratios([flow(torch.cat([normal, abnormal]))[0]])
    assert ratio[:8].mean() < 0 < ratio[8:].mean()


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        ([], {}, r"channels of one stage or more; got none"),
        ([4], {"distance": 0.0}, r"distance .* above 0; got 0\.0"),
        ([4], {"distance": math.inf}, r"distance .* above 0; got inf"),
    ],
)
def test_wrong_numbers_are_refused(channels: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixturePrior(channels, **options)

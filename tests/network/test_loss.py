import math
from typing import Any

import pytest
import torch

from aeflow_monai.network.aeflow import AEFlowOutput
from aeflow_monai.network.flow import LatentFlow, standard_normal_log_density
from aeflow_monai.network.loss import AEFlowLoss, MixtureLoss, MixturePrior

IMAGE = torch.tensor([0.0, 0.5, 1.0, 0.5]).view(1, 1, 2, 2)
OUTPUT = AEFlowOutput(
    latents=[],
    log_likelihoods=[torch.tensor([-1.0, -3.0]).view(1, 1, 1, 2), torch.full((1, 1, 1, 1), -5.0)],
    reconstruction=torch.tensor([0.0, 0.5, 0.0, 0.0]).view(1, 1, 2, 2),
)
FLOW = (2 + 5) / 2  # mean of each stage, then of the stages, whatever their number of positions
RECONSTRUCTION = (1 + 0.25) / 4


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_value_by_hand(alpha: float) -> None:
    loss = AEFlowLoss(alpha)(OUTPUT, IMAGE)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(alpha * FLOW + (1 - alpha) * RECONSTRUCTION)


def test_parts_add_up() -> None:
    loss = AEFlowLoss(0.25)
    assert loss.flow_loss(OUTPUT).item() == pytest.approx(FLOW)
    assert loss.reconstruction_loss(OUTPUT, IMAGE).item() == pytest.approx(RECONSTRUCTION)
    parts = 0.25 * loss.flow_loss(OUTPUT) + 0.75 * loss.reconstruction_loss(OUTPUT, IMAGE)
    assert loss(OUTPUT, IMAGE).item() == pytest.approx(parts.item())


def test_gradient_reaches_likelihoods_and_reconstruction() -> None:
    output = AEFlowOutput([], [m.clone().requires_grad_() for m in OUTPUT.log_likelihoods], OUTPUT.reconstruction)
    output.reconstruction.requires_grad_()
    AEFlowLoss()(output, IMAGE).backward()
    for likelihood in output.log_likelihoods:
        assert likelihood.grad is not None
        assert (likelihood.grad < 0).all()  # a higher likelihood is a lower loss
    assert output.reconstruction.grad is not None
    output.reconstruction.requires_grad_(False)


def test_half_precision_is_summed_in_full() -> None:
    # of 8 bits of mantissa in bfloat16, a difference of 0.001 from 1 would be lost
    reconstruction = torch.ones(1, 1, 8, 8, dtype=torch.bfloat16)
    output = AEFlowOutput([], [torch.zeros(1, 1, 1, 1)], reconstruction)
    loss = AEFlowLoss(alpha=0.0)(output, torch.full((1, 1, 8, 8), 0.999))
    assert loss.item() == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range_is_named(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"has to be in \[0, 1\]; got {alpha}"):
        AEFlowLoss(alpha)


def batch(count: int = 4) -> tuple[AEFlowOutput, torch.Tensor]:
    # in double precision: terms of either sign are added in another order than by hand
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(count, c, s, s, dtype=torch.float64, generator=generator) for c, s in ((4, 2), (6, 1))]
    likelihoods = [torch.randn(latent[:, :1].shape, dtype=torch.float64, generator=generator) for latent in latents]
    reconstruction, image = torch.rand(2, count, 1, 8, 8, dtype=torch.float64, generator=generator)
    return AEFlowOutput(latents, likelihoods, reconstruction), image


def part(output: AEFlowOutput, chosen: slice) -> AEFlowOutput:
    latents, likelihoods = ([stage[chosen] for stage in stages] for stages in output[:2])
    return AEFlowOutput(latents, likelihoods, output.reconstruction[chosen])


@pytest.mark.parametrize("labelled", [True, False])
def test_without_abnormal_images_the_mixture_loss_is_the_plain_one(labelled: bool) -> None:
    output, image = batch()
    plain, loss = AEFlowLoss(0.3), MixtureLoss(AEFlowLoss(0.3), MixturePrior([4, 6]))
    target = (image, torch.zeros(4, 1, 8, 8)) if labelled else image
    assert torch.equal(loss(output, target), plain(output, image))
    assert torch.equal(loss.flow_loss(output, target), plain.flow_loss(output))
    assert torch.equal(loss.reconstruction_loss(output, target), plain.reconstruction_loss(output, image))


def all_of(*abnormal: bool) -> torch.Tensor:
    """The mask of images that are abnormal all over, or nowhere."""
    return torch.tensor(abnormal).float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def test_images_that_are_abnormal_all_over_add_their_likelihood_under_the_abnormal_component() -> None:
    output, image = batch()
    prior = MixturePrior([4, 6])
    loss, plain = MixtureLoss(AEFlowLoss(0.3), prior, weight=0.5), AEFlowLoss(0.3)
    target = (image, all_of(False, False, False, True))
    normal, abnormal = part(output, slice(3)), part(output, slice(3, 4))
    ratios = prior.log_ratios(abnormal.latents)
    under_abnormal = [lik + ratio for lik, ratio in zip(abnormal.log_likelihoods, ratios, strict=True)]
    expected = plain.flow_loss(AEFlowOutput([], under_abnormal, abnormal.reconstruction))
    assert loss.abnormal_loss(output, target).item() == pytest.approx(expected.item())
    total = plain(normal, image[:3]) + 0.5 * 0.3 * expected
    assert loss(output, target).item() == pytest.approx(total.item())


def test_each_position_counts_as_its_share_of_lesion_says() -> None:
    output, image = batch(2)
    mask = torch.zeros(2, 1, 8, 8)
    mask[1, :, :4, :4] = 0.5  # of the first of 2 x 2 positions half, of the only position of the next stage an eighth
    mask[1, :, 0, 4] = 1.0  # of the second a sixteenth: neither this nor that
    prior = MixturePrior([4, 6])
    ratio = prior.log_ratios(output.latents)[0][1, 0]
    likelihood = output.log_likelihoods[0][1, 0]
    first = -(likelihood + ratio)[0, 0] - likelihood[1].mean()
    expected = first / 2  # the second stage has neither kind of position
    assert MixtureLoss(AEFlowLoss(), prior).abnormal_loss(output, (image, mask)).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_reconstruction_of_abnormal_images_is_not_learned() -> None:
    output, image = batch()
    output.reconstruction.requires_grad_()
    loss = MixtureLoss(AEFlowLoss(), MixturePrior([4, 6]))
    loss(output, (image, all_of(False, True, False, False))).backward()
    assert output.reconstruction.grad is not None
    assert (output.reconstruction.grad.flatten(1).abs().sum(dim=1) > 0).tolist() == [True, False, True, True]


@pytest.mark.parametrize("is_target", [(True, False, False, True), (False, True, False, False)])
def test_of_normal_images_those_are_reconstructed_that_are_targets(is_target: tuple[bool, ...]) -> None:
    """The second image is abnormal, so of the second case none is left."""
    output, image = batch()
    output = output._replace(is_target=torch.tensor(is_target))
    output.reconstruction.requires_grad_()
    loss, target = MixtureLoss(AEFlowLoss(0.3), MixturePrior([4, 6])), (image, all_of(False, True, False, False))
    learned = [is_target[0], False, False, is_target[3]]
    errors = (output.reconstruction - image)[learned].square()
    expected = errors.mean().item() if any(learned) else 0
    assert loss.reconstruction_loss(output, target).item() == pytest.approx(expected)
    total = loss(output, target)
    rest = 0.3 * (loss.flow_loss(output, target) + 0.5 * loss.abnormal_loss(output, target))
    assert total.item() == pytest.approx(rest.item() + 0.7 * expected)
    total.backward()
    assert output.reconstruction.grad is not None
    assert (output.reconstruction.grad.flatten(1).abs().sum(dim=1) > 0).tolist() == learned


def test_a_position_that_does_not_count_may_be_of_no_likelihood() -> None:
    output, image = batch(2)
    mask = torch.zeros(2, 1, 8, 8)
    mask[1, :, 0, 4] = 1.0
    output.log_likelihoods[0][1, 0, 0, 1] = -torch.inf
    assert torch.isfinite(MixtureLoss(AEFlowLoss(), MixturePrior([4, 6])).abnormal_loss(output, (image, mask)))


def test_weight_of_abnormal_images_has_to_be_positive() -> None:
    with pytest.raises(ValueError, match=r"weight .* above 0; got 0"):
        MixtureLoss(AEFlowLoss(), MixturePrior([4]), weight=0)
    with pytest.raises(ValueError, match=r"least .* in \(0, 1\]; got 0"):
        MixtureLoss(AEFlowLoss(), MixturePrior([4]), least=0)


def test_batch_of_abnormal_images_alone_is_refused() -> None:
    output, image = batch(1)
    with pytest.raises(
        ValueError, match=r"Expected a normal image in each batch; got 1 abnormal ones alone.*batch_size to 2"
    ):
        MixtureLoss(AEFlowLoss(), MixturePrior([4, 6]))(output, (image, torch.ones(1, 1, 8, 8)))


def some_latents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 6, 3, 4, generator=generator), torch.randn(2, 10, 2, 2, generator=generator)]


def test_log_ratio_is_the_difference_of_the_two_densities() -> None:
    prior = MixturePrior([6, 10], distance=0.8)
    for latent, mean, ratio in zip(some_latents(), prior.means, prior.log_ratios(some_latents()), strict=True):
        latent, mean = latent.double(), mean.double().view(1, -1, 1, 1)
        expected = (standard_normal_log_density(latent - mean) - standard_normal_log_density(latent)) / latent.shape[1]
        assert ratio.shape == expected.shape
        torch.testing.assert_close(ratio.double(), expected, rtol=0, atol=1e-5)


def test_distance_is_per_channel_and_the_same_for_all_stages() -> None:
    prior = MixturePrior([6, 10], distance=1.5)
    for mean in prior.means:
        assert mean.double().square().mean().sqrt().item() == pytest.approx(1.5)


def test_half_precision_of_the_network_costs_the_ratio_nothing() -> None:
    prior = MixturePrior([6, 10])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = prior.log_ratios(some_latents())
    for one, other in zip(under_autocast, prior.log_ratios(some_latents()), strict=True):
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
def test_wrong_numbers_of_a_prior_are_refused(channels: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixturePrior(channels, **options)

import pytest
import torch
from torch import Tensor

from aeflow_monai.network.aeflow import AEFlow
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.network.loss import AEFlowLoss

STAGES = [[3], [2, 3], [1, 2, 4]]


def images(n: int = 2, size: tuple[int, int] = (64, 64), channels: int = 1) -> Tensor:
    """Smooth blobs in [0, 1]."""
    noise = torch.randn(n, channels, size[0] // 8, size[1] // 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size=size, mode="bicubic").sigmoid()


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_shapes(stages: list[int], in_channels: int) -> None:
    model = AEFlow(Encoder(stages=stages, in_channels=in_channels), n_steps=2)
    image = images(size=(64, 96), channels=in_channels)
    output = model(image)
    sizes = [(64 // 2 ** (s + 1), 96 // 2 ** (s + 1)) for s in stages]
    assert [tuple(z.shape) for z in output.latents] == [
        (2, c, *size) for c, size in zip(model.encoder.channels, sizes, strict=True)
    ]
    assert [tuple(m.shape) for m in output.log_likelihoods] == [(2, 1, *size) for size in sizes]
    assert output.reconstruction.shape == image.shape


@pytest.mark.parametrize("stages", STAGES)
def test_features_given_equal_features_computed(stages: list[int]) -> None:
    model = AEFlow(Encoder(stages=stages), n_steps=2).eval()
    image = images()
    computed, given = model(image), model(image, features=model.encoder(image))
    for one, other in zip(
        computed.latents + computed.log_likelihoods, given.latents + given.log_likelihoods, strict=True
    ):
        assert torch.equal(one, other)
    assert torch.equal(computed.reconstruction, given.reconstruction)


def test_likelihoods_are_those_of_the_flows() -> None:
    model = AEFlow(Encoder(), n_steps=2)
    model(images())  # fits the feature norms
    output = model.eval()(images())
    for flow, stage, likelihood in zip(model.flows, model.encoder(images()), output.log_likelihoods, strict=True):
        assert torch.equal(flow.log_likelihood(stage), likelihood)  # type: ignore[operator]


@pytest.mark.parametrize("subnet", ["conv", "resnet"])
@pytest.mark.parametrize("stages", STAGES)
def test_all_but_the_encoder_gets_a_gradient(stages: list[int], subnet: str) -> None:
    torch.manual_seed(0)
    model = AEFlow(Encoder(stages=stages), n_steps=2, subnet=subnet).train()
    AEFlowLoss(alpha=0.5)(model(images()), images()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("encoder."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_gradient_of_the_reconstruction_reaches_the_flows() -> None:
    # the decoder reads the normalised features z', not the encoder's
    model = AEFlow(Encoder(), n_steps=2)
    AEFlowLoss(alpha=0.0)(model(images()), images()).backward()
    for flow in model.flows:
        assert sum(float(p.grad.abs().sum()) for p in flow.parameters() if p.grad is not None) > 0


def test_images_that_no_loss_looks_at_are_not_reconstructed_and_the_rest_is_the_same() -> None:
    model = AEFlow(Encoder(weights="random"), n_steps=1).eval()
    image, is_target = torch.rand(4, 1, 64, 64), torch.tensor([True, False, True, True])
    whole, some = model(image), model(image, is_target=is_target)
    assert not some.reconstruction[1].any()
    assert some.is_target is is_target
    assert whole.is_target is None
    torch.testing.assert_close(some.reconstruction[is_target], whole.reconstruction[is_target])
    for name in ("latents", "log_likelihoods"):
        for one, other in zip(getattr(some, name), getattr(whole, name), strict=True):
            assert torch.equal(one, other)
    gradients = []
    for output in (whole, some):
        model.zero_grad()
        output.reconstruction[is_target].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_a_batch_without_an_image_to_reconstruct_gives_the_decoder_a_gradient_all_the_same() -> None:
    """Other processes of a training wait for it."""
    model = AEFlow(Encoder(weights="random"), n_steps=1)
    output = model(torch.rand(2, 1, 64, 64), is_target=torch.zeros(2, dtype=torch.bool))
    output.reconstruction.sum().backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


def test_gradient_of_an_unfrozen_encoder() -> None:
    model = AEFlow(Encoder("resnet10t", stages=[2], weights="random", frozen=False), n_steps=1)
    AEFlowLoss()(model(images()), images()).backward()
    assert all(p.grad is not None for p in model.encoder.parameters())


@pytest.mark.parametrize("feature_norm", [None, "channel", "image"])
def test_training_lowers_both_parts_of_the_loss(feature_norm: str | None) -> None:
    torch.manual_seed(0)
    model = AEFlow(Encoder(stages=[2]), n_steps=2, feature_norm=feature_norm).train()
    loss, image = AEFlowLoss(), images(8)
    features = model.encoder(image)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.005)
    parts = []
    for _ in range(30):
        optimizer.zero_grad()
        output = model(image, features)
        loss(output, image).backward()
        optimizer.step()
        parts.append((loss.flow_loss(output).item(), loss.reconstruction_loss(output, image).item()))
    assert parts[-1][0] < parts[0][0] - 0.1  # nats per channel
    assert parts[-1][1] < 0.8 * parts[0][1]


@pytest.mark.parametrize("subnet", ["conv", "resnet"])
def test_state_dict_round_trip_is_bit_equal(subnet: str) -> None:
    model = AEFlow(Encoder(), n_steps=2, subnet=subnet)
    model(images())
    other = AEFlow(Encoder(weights="checkpoint"), n_steps=2, subnet=subnet, seed=7)
    other.load_state_dict(model.state_dict())
    ours, theirs = model.eval()(images()), other.eval()(images())
    for one, two in zip(ours.latents + ours.log_likelihoods, theirs.latents + theirs.log_likelihoods, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(ours.reconstruction, theirs.reconstruction)


def test_seed_gives_each_stage_rotations_of_its_own() -> None:
    # two stages of 64 channels each
    encoder = Encoder("resnet10t", stages=[0, 1], weights="random")
    assert encoder.channels == [64, 64]
    state = AEFlow(encoder, n_steps=1).state_dict()
    again = AEFlow(encoder, n_steps=1).state_dict()
    first, second = (state[f"flows.{stage}.steps.0.mixing"] for stage in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(again["flows.0.steps.0.mixing"], first)
    other = AEFlow(encoder, n_steps=1, seed=5).state_dict()
    assert not torch.equal(other["flows.0.steps.0.mixing"], first)


@pytest.mark.parametrize("size", [(60, 64), (64, 72)])
def test_size_has_to_fit_the_strides(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"largest stride, 16; got \({size[0]}, {size[1]}\)\. Use .*Resized or Div"):
        AEFlow(Encoder(weights="random"), n_steps=1)(torch.zeros(1, 1, *size))


def test_number_of_features_has_to_fit_the_stages() -> None:
    model = AEFlow(Encoder(weights="random"), n_steps=1)
    with pytest.raises(ValueError, match="argument"):
        model(images(), features=model.encoder(images())[:1])

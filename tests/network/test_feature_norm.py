import pytest
import torch
from score.precision import rounding_error

from aeflow_monai.network.feature_norm import FeatureNorm
from aeflow_monai.network.flow import LatentFlow


def features_of(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def test_first_training_batch_becomes_standard() -> None:
    norm = FeatureNorm(3)
    features = features_of(5, 3, 4, 4) * torch.tensor([6.0, 0.1, 1.0]).view(1, 3, 1, 1) + 7
    standard, log_abs_det = norm(features)
    channels = features.transpose(0, 1).flatten(1)
    magnitude = (channels.abs().amax(dim=1) / channels.std(dim=1, correction=0)).amax().item()
    bound = rounding_error(channels.shape[1], magnitude)
    assert bound < 1e-3
    torch.testing.assert_close(standard.double().mean(dim=(0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=bound)
    torch.testing.assert_close(
        standard.double().std(dim=(0, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=bound
    )
    torch.testing.assert_close(log_abs_det, -features.std(dim=(0, 2, 3), correction=0).log().sum())


def test_later_batches_and_evaluation_leave_it_alone() -> None:
    norm = FeatureNorm(3)
    first = features_of(2, 3, 4, 4)
    assert torch.equal(norm.eval()(first)[0], first)  # not fitted: the identity
    norm.train()(first)
    state = {key: value.clone() for key, value in norm.state_dict().items()}
    norm(first * 100 - 5)
    norm.eval()(first * 100 - 5)
    assert all(torch.equal(value, state[key]) for key, value in norm.state_dict().items())
    assert state["fitted"]


@pytest.mark.parametrize("shape", [(2, 2, 3, 3), (1, 2, 1, 1)])
def test_silent_channel_is_not_blown_up(shape: tuple[int, ...]) -> None:
    norm = FeatureNorm(2)
    norm(torch.zeros(shape))
    standard, log_abs_det = norm(torch.ones(shape))
    assert torch.isfinite(log_abs_det)
    assert standard.abs().max() <= 100


def test_kind_image_takes_away_the_scale_of_each_image() -> None:
    flow = LatentFlow(4, n_steps=2, feature_norm="image").double()
    features = features_of(3, 4, 5, 5).double()
    flow.train()(features)
    # the layer norm adds 1e-5 to a variance of 0.36, which is 1.4e-5 of the deviation
    scale, offset = torch.tensor([0.2, 1.0, 9.0]).view(3, 1, 1, 1), torch.tensor([4.0, 0.0, -2.0]).view(3, 1, 1, 1)
    for plain, changed in zip(flow.eval()(features), flow(features * scale + offset), strict=True):
        torch.testing.assert_close(changed, plain, rtol=1e-3, atol=1e-3)
    normalised = flow.inverse(flow(features)[0])
    torch.testing.assert_close(normalised.mean(dim=(1, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(normalised.std(dim=(1, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=1e-5)


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown feature_norm 'batch': choose one of \['channel', 'image'\]"):
        LatentFlow(4, feature_norm="batch")

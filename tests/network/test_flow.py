import itertools
import math

import pytest
import torch
from FrEIA.modules import AllInOneBlock
from score.precision import rounding_error
from torch import Tensor, nn

from aeflow_monai.network.aeflow import AEFlowOutput
from aeflow_monai.network.flow import LatentFlow, standard_normal_log_density
from aeflow_monai.network.flow_step import MIXINGS, FlowStep
from aeflow_monai.network.loss import AEFlowLoss
from aeflow_monai.network.subnets import SUBNETS

SHAPES = [(4, 3, 3), (5, 2, 2), (2, 1, 3)]  # channels, rows, columns: even and odd channels


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter and every batch norm statistic a value that no initialisation has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.7 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def a_flow(
    channels: int,
    subnet: str = "conv",
    feature_norm: str | None = "channel",
    n_steps: int = 3,
    seed: int = 0,
    clamp: float = 2.0,
    mixing: str = "linear",
) -> LatentFlow:
    """A flow in double precision with random parameters, feature norm fitted by a training batch."""
    torch.manual_seed(seed)
    flow = LatentFlow(
        channels, n_steps, subnet, hidden_channels=6, clamp=clamp, seed=seed, feature_norm=feature_norm, mixing=mixing
    )
    randomise(flow)
    flow.double().train()
    generator = torch.Generator().manual_seed(1)
    flow(6 * torch.randn(8, channels, 3, 3, dtype=torch.float64, generator=generator) - 2)
    return flow.eval()


def features_of(shape: tuple[int, ...], n: int = 1) -> Tensor:
    return 3 * torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def jacobian(flow: nn.Module, features: Tensor) -> Tensor:
    """(C h w, C h w) of one sample, both sides ordered by channel, row, column."""
    full = torch.autograd.functional.jacobian(lambda x: flow(x)[0], features)
    assert isinstance(full, Tensor)
    return full.reshape(features.numel(), features.numel())


@pytest.mark.parametrize("feature_norm", [None, "channel"])
@pytest.mark.parametrize("subnet", sorted(SUBNETS))
@pytest.mark.parametrize("shape", SHAPES)
class TestLaws:
    def test_inverse_is_exact_in_both_directions(
        self, shape: tuple[int, ...], subnet: str, feature_norm: str | None
    ) -> None:
        flow = a_flow(shape[0], subnet, feature_norm)
        features = features_of(shape, n=3)
        latent, _ = flow(features)
        assert not torch.allclose(latent, features, atol=0.1)
        torch.testing.assert_close(flow.inverse(latent), features, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(flow(flow.inverse(features))[0], features, rtol=1e-10, atol=1e-10)

    def test_log_determinant_is_that_of_the_jacobian(
        self, shape: tuple[int, ...], subnet: str, feature_norm: bool
    ) -> None:
        flow = a_flow(shape[0], subnet, feature_norm)
        features = features_of(shape)
        _, log_abs_det = flow(features)
        assert log_abs_det.shape == (1, 1, *shape[1:])
        expected = torch.linalg.slogdet(jacobian(flow, features)).logabsdet
        torch.testing.assert_close(log_abs_det.sum(), expected, rtol=1e-9, atol=1e-9)

    def test_log_determinant_of_one_step_is_that_of_each_position(
        self, shape: tuple[int, ...], subnet: str, feature_norm: bool
    ) -> None:
        # The active channels of a position see the other positions through passive channels only, so the Jacobian's
        # determinant is the product of those of its blocks on the diagonal, one block per position.
        flow = a_flow(shape[0], subnet, feature_norm, n_steps=1)
        features = features_of(shape)
        channels, positions = shape[0], shape[1] * shape[2]
        blocks = jacobian(flow, features).view(channels, positions, channels, positions)
        _, log_abs_det = flow(features)
        for position, value in enumerate(log_abs_det.flatten()):
            expected = torch.linalg.slogdet(blocks[:, position, :, position]).logabsdet
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_steps", [1, 2])
def test_likelihood_of_a_position_depends_on_its_neighbourhood_only(n_steps: int) -> None:
    flow = a_flow(8, n_steps=n_steps)
    features = features_of((8, 9, 9))
    changed = features.clone()
    changed[:, :, 4, 4] += 1
    difference = (flow.log_likelihood(changed) - flow.log_likelihood(features))[0, 0].abs()
    near = difference[4 - n_steps : 5 + n_steps, 4 - n_steps : 5 + n_steps]
    nearer = difference[5 - n_steps : 4 + n_steps, 5 - n_steps : 4 + n_steps]
    far = difference.clone()
    far[4 - n_steps : 5 + n_steps, 4 - n_steps : 5 + n_steps] = 0
    assert not far.any()
    assert near.sum() > nearer.sum()  # each step reaches one position further
    assert difference[4, 4] > 0


def test_samples_of_a_batch_do_not_meet() -> None:
    for subnet in SUBNETS:
        flow = a_flow(5, subnet)
        features = features_of((5, 4, 4), n=3)
        alone = torch.cat([flow.log_likelihood(one[None]) for one in features])
        torch.testing.assert_close(flow.log_likelihood(features), alone)


class TenTimes(nn.Module):
    def forward(self, outputs: Tensor) -> Tensor:
        return 10 * outputs


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("subnet", sorted(SUBNETS))
@pytest.mark.parametrize("shape", SHAPES)
def test_step_equals_that_of_freia(shape: tuple[int, ...], subnet: str, mixing: str) -> None:
    channels = shape[0]
    step = FlowStep(channels, subnet, 6, clamp=2.0, generator=torch.Generator().manual_seed(3), mixing=mixing)
    block = AllInOneBlock(
        [shape],
        # FrEIA scales outputs by 0.1 in the block, where ours come scaled from the subnet
        subnet_constructor=lambda inside, outside: nn.Sequential(SUBNETS[subnet](inside, outside, 6), TenTimes()),
        affine_clamping=2.0,
        global_affine_type="SOFTPLUS",
        permute_soft=False,
    )
    # both start at the same scale
    torch.testing.assert_close(step.global_scale.detach(), block.global_scale.detach().flatten())
    randomise(step)
    # FrEIA: output channel i takes input channel j where 1
    matrix = torch.eye(channels)[step.permutation] if step.mixing is None else step.mixing.detach()
    with torch.no_grad():
        block.subnet[0].load_state_dict(step.subnet.state_dict())
        block.global_scale.copy_(step.global_scale.view(1, -1, 1, 1))
        block.global_offset.copy_(step.global_offset.view(1, -1, 1, 1))
        block.w_perm.copy_(matrix[:, :, None, None])
        step.double().eval()
        block.double().eval()
        block.w_perm_inv.copy_(torch.linalg.inv(matrix.double())[:, :, None, None])
        features = features_of(shape, n=2)
        ours, log_abs_det = step(features)
        (theirs,), their_log_abs_det = block([features])
        torch.testing.assert_close(ours, theirs)
        # FrEIA's is for matrices that keep volumes
        n_positions = features[0, 0].numel()
        expected = their_log_abs_det + n_positions * torch.linalg.slogdet(matrix.double()).logabsdet
        torch.testing.assert_close(log_abs_det.sum(dim=(1, 2, 3)), expected)
        (back,), _ = block([features], rev=True)
        torch.testing.assert_close(step.inverse(features), back)


def test_base_density_is_that_of_torch() -> None:
    latent = features_of((7, 3, 2), n=2)
    expected = torch.distributions.Normal(0, 1).log_prob(latent).sum(dim=1, keepdim=True)
    torch.testing.assert_close(standard_normal_log_density(latent), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_density_does_not_underflow_at_the_published_size(dtype: torch.dtype) -> None:
    latent = 10 * torch.randn(1, 1024, 16, 16, generator=torch.Generator().manual_seed(0))
    density = standard_normal_log_density(latent.to(dtype))
    assert density.sum().exp() == 0  # what the density itself would be
    assert density.dtype == torch.float32
    assert torch.isfinite(density).all()
    expected = standard_normal_log_density(latent.to(dtype).double())
    torch.testing.assert_close(density.double(), expected, rtol=rounding_error(1024 + 3), atol=0)
    assert (expected < -torch.finfo(torch.float16).max / 2).any()  # half precision is not enough for the sum


@pytest.mark.parametrize("subnet", sorted(SUBNETS))
def test_likelihoods_are_finite_at_the_published_size(subnet: str) -> None:
    flow = LatentFlow(1024, n_steps=1, subnet=subnet, hidden_channels=8).eval()
    with torch.no_grad():
        likelihood = flow.log_likelihood(torch.randn(1, 1024, 16, 16))
    assert likelihood.shape == (1, 1, 16, 16)
    assert torch.isfinite(likelihood).all()


@pytest.mark.parametrize("subnet", sorted(SUBNETS))
def test_mixed_precision_agrees_with_full(subnet: str) -> None:
    torch.manual_seed(0)
    flow = LatentFlow(32, subnet=subnet).eval()
    features = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = flow.log_likelihood(features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = flow.log_likelihood(features)
    assert mixed.dtype == torch.float32
    # each of 8 steps rounds features, weights and result to bfloat16; the square doubles what a latent loses of itself,
    # and half of it counts
    bound = 8 * 3 * torch.finfo(torch.bfloat16).eps / 2
    torch.testing.assert_close(mixed, full, rtol=bound, atol=0)


def test_likelihood_is_in_nats_per_channel() -> None:
    flow = a_flow(4)
    features = features_of((4, 3, 3))
    latent, log_abs_det = flow(features)
    log_density = torch.distributions.Normal(0, 1).log_prob(latent).sum(dim=1, keepdim=True)
    torch.testing.assert_close(flow.log_likelihood(features), (log_density + log_abs_det) / 4)


@pytest.mark.parametrize("feature_norm", [None, "channel"])
@pytest.mark.parametrize("subnet", sorted(SUBNETS))
def test_every_parameter_gets_a_gradient_from_the_loss(subnet: str, feature_norm: str | None) -> None:
    flow = LatentFlow(6, n_steps=3, subnet=subnet, feature_norm=feature_norm)
    latent, log_abs_det = flow(features_of((6, 5, 5), n=4).float())
    likelihood = (standard_normal_log_density(latent) + log_abs_det) / 6
    image = torch.zeros(4, 1, 8, 8)
    AEFlowLoss(alpha=0.5)(AEFlowOutput([latent], [likelihood], image), image).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_likelihood_of_fresh_data_rises_to_the_entropy_and_not_above() -> None:
    # correlated normal features, whose entropy is known; no model can beat it on fresh data (Gibbs)
    mixing = torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> Tensor:
        return torch.einsum("ij,njhw->nihw", mixing, torch.randn(n, 2, 4, 4, generator=generator)) + 3

    entropy = 0.5 * math.log(2 * math.pi * math.e) + torch.linalg.slogdet(mixing).logabsdet.item() / 2
    torch.manual_seed(0)
    flow = LatentFlow(2, n_steps=3, hidden_channels=8)
    fresh = draw(1000)
    before = -flow.eval().log_likelihood(fresh).mean().item()
    flow.train()
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        (-flow.log_likelihood(draw(64)).mean()).backward()
        optimizer.step()
    after = -flow.eval().log_likelihood(fresh).mean().item()
    assert before > entropy + 1
    assert entropy - 0.02 < after < entropy + 0.1


def test_seed_decides_the_permutations() -> None:
    def permutations(seed: int) -> list[list[int]]:
        state = LatentFlow(16, n_steps=3, seed=seed, mixing="permutation").state_dict()
        return [value.tolist() for key, value in state.items() if key.endswith(".permutation")]

    torch.manual_seed(0)
    first = permutations(0)
    torch.manual_seed(1)  # the permutations are the model's, not the global generator's
    assert permutations(0) == first
    others = permutations(1)
    assert all(one != other for one, other in zip(first, others, strict=True))
    assert len({tuple(p) for p in first}) == 3  # each step has its own
    assert all(sorted(p) == list(range(16)) for p in first)


def test_seed_decides_the_rotations_that_mixing_starts_with() -> None:
    def rotations(seed: int) -> list[Tensor]:
        state = LatentFlow(16, n_steps=3, seed=seed).state_dict()
        return [value for key, value in state.items() if key.endswith(".mixing")]

    first = rotations(0)
    torch.manual_seed(1)
    assert all(torch.equal(one, other) for one, other in zip(first, rotations(0), strict=True))
    for one, other in itertools.combinations([*first, *rotations(1)], 2):
        assert not torch.allclose(one, other, atol=0.1)
    for rotation in first:
        square = rotation.double() @ rotation.double().T
        torch.testing.assert_close(square, torch.eye(16).double(), rtol=0, atol=rounding_error(16 * 16))


@pytest.mark.parametrize("subnet", sorted(SUBNETS))
def test_state_dict_carries_everything(subnet: str) -> None:
    flow, other = a_flow(5, subnet, seed=0), a_flow(5, subnet, seed=9)
    randomise(other, seed=5)
    features = features_of((5, 4, 4), n=2)
    assert not torch.equal(other(features)[0], flow(features)[0])
    other.load_state_dict(flow.state_dict())
    for ours, theirs in zip(flow(features), other(features), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(flow.inverse(features), other.inverse(features))


def test_clamp_bounds_the_scale_of_a_coupling() -> None:
    with torch.no_grad():
        flow = a_flow(4, n_steps=1, feature_norm=None, clamp=0.5)
        step = flow.steps[0]
        assert isinstance(step, FlowStep)
        step.global_scale.copy_(FlowStep(4, "conv", 6).global_scale)  # a scale of 1
        assert step.mixing is not None
        step.mixing.copy_(torch.eye(4))
        _, log_abs_det = flow(1e4 * features_of((4, 5, 5)))
    assert log_abs_det.abs().max() == pytest.approx(2 * 0.5)  # two active channels, tanh saturated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subnet": "dense"}, r"Unknown coupling subnet 'dense': choose one of \['conv', 'resnet'\]\."),
        ({"mixing": "shuffle"}, r"Unknown mixing of channels 'shuffle': choose one of \['linear', 'permutation'\]\."),
        ({"channels": 1}, r"needs at least 2; got 1\."),
        ({"n_steps": 0}, r"n_steps has to be at least 1; got 0\."),
        ({"clamp": 0.0}, r"above 0; got clamp=0\.0"),
        ({"hidden_channels": 0}, r"above 0; got clamp=2\.0, hidden_channels=0\."),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentFlow(**{"channels": 4, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 5, 2, 2), (4, 2, 2)])
def test_features_of_another_stage_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected features of shape \(N, 4, h, w\); got \("):
        LatentFlow(4)(torch.zeros(shape))

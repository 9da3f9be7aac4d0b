import pytest
import torch

from aeflow_monai import AEFlowLoss, AEFlowOutput

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

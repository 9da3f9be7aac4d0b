"""AE-Flow for inference: constants of the trained network are precomputed, and unused outputs left out."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aeflow_monai.network.aeflow import AEFlow, AEFlowOutput
from aeflow_monai.network.feature_norm import FeatureNorm
from aeflow_monai.network.flow import LatentFlow, log_likelihood_per_channel
from aeflow_monai.network.flow_step import FlowStep
from aeflow_monai.network.folded_encoder import fold_encoder
from aeflow_monai.network.subnets import SUBNET_SCALE, ConvSubnet, ResNetSubnet

__all__ = ["FoldedAEFlow"]


class FoldedAEFlow(nn.Module):
    """A trained AE-Flow in fewer and larger operations, with the same output up to rounding.

    Batch norms are folded into the preceding convolutions, the scaling of the image into the first one. The global
    affine and the mixing of a flow step are one convolution, and the constant parts of its log-determinant are one
    number. It is a copy: later training of the network does not change it.

    Args:
        network: the trained network, which is left unchanged.
        with_likelihood: compute the log-likelihoods too; otherwise their list is empty.
        image_size: see `fold_encoder`.

    Example:
        >>> from aeflow_monai.network.encoder import Encoder
        >>> network = AEFlow(Encoder(), n_steps=2).eval()
        >>> image = torch.rand(2, 1, 64, 64)
        >>> folded = FoldedAEFlow(network)(image)
        >>> torch.allclose(folded.reconstruction, network(image).reconstruction, atol=1e-5)
        True
    """

    def __init__(self, network: AEFlow, with_likelihood: bool = False, image_size: Sequence[int] | None = None) -> None:
        super().__init__()
        self.encoder = fold_encoder(network.encoder, image_size)
        flows = [flow for flow in network.flows if isinstance(flow, LatentFlow)]
        self.flows = nn.ModuleList(_FoldedFlow(flow, with_likelihood) for flow in flows)
        self.decoder = deepcopy(network.decoder)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor) -> AEFlowOutput:
        """Encode the images, map the features to latents, and reconstruct the images; see `AEFlow.forward`."""
        features = self.encoder(image)
        latents, log_likelihoods = [], []
        for flow, stage in zip(self.flows, features, strict=True):
            latent, log_abs_det = flow(stage)
            latents.append(latent)
            if log_abs_det is not None:
                log_likelihoods.append(log_likelihood_per_channel(latent, log_abs_det))
        return AEFlowOutput(latents, log_likelihoods, self.decoder(latents), features)


class _FoldedFlow(nn.Module):
    """A `LatentFlow` that keeps the two halves of the channels separate from step to step."""

    log_abs_det: Tensor

    def __init__(self, flow: LatentFlow, with_likelihood: bool) -> None:
        super().__init__()
        self.with_likelihood = with_likelihood
        steps = [step for step in flow.steps if isinstance(step, FlowStep)]
        self.norm = None if flow.norm is None else _FoldedNorm(flow.norm)
        self.steps = nn.ModuleList(_FoldedStep(step) for step in steps)
        self.passive = steps[0].passive
        constant = torch.stack([step.constant_log_abs_det() for step in steps]).sum()
        if flow.norm is not None:
            constant = constant - flow.norm.std.log().sum()
        self.register_buffer("log_abs_det", constant.detach())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the latent (N, C, h, w), and log |det J| per position (N, 1, h, w), or None without likelihood."""
        joined = features if self.norm is None else self.norm(features)
        passive, active = joined[:, : self.passive], joined[:, self.passive :]
        log_abs_det = self.log_abs_det if self.with_likelihood else None
        for step in self.steps:
            passive, active, log_scale = step(passive, active)
            if log_abs_det is not None:
                log_abs_det = log_abs_det + log_scale.sum(dim=1, keepdim=True)
        return torch.cat([passive, active], dim=1), log_abs_det


class _FoldedNorm(nn.Module):
    """A `FeatureNorm` as one multiplication and one addition."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: FeatureNorm) -> None:
        super().__init__()
        self.is_of_image = norm.kind == "image"
        self.register_buffer("scale", (1 / norm.std).view(1, -1, 1, 1))
        self.register_buffer("shift", (-norm.mean / norm.std).view(1, -1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        if not self.is_of_image:
            return features * self.scale + self.shift
        centred = features - features.mean(dim=(1, 2, 3), keepdim=True)
        deviation = (centred.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-5).rsqrt()  # the epsilon of a layer norm
        return centred * (deviation * self.scale) + self.shift


class _FoldedStep(nn.Module):
    """A `FlowStep` whose mixing, scale and offset are one convolution for each half of the next step's input."""

    order: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, step: FlowStep) -> None:
        super().__init__()
        self.clamp, self.passive = step.clamp, step.passive
        fold = _fold_conv_subnet if isinstance(step.subnet, ConvSubnet) else _fold_resnet_subnet
        self.log_scale, self.shift, self.before = fold(step.subnet, step.active)
        scale, offset = step.scale().detach(), step.global_offset.detach()
        self.mixing: nn.ModuleList | None = None
        if step.mixing is None:  # permuting channels is cheaper than multiplying them
            self.register_buffer("order", step.permutation)
            self.register_buffer("scale", scale.view(1, -1, 1, 1))
            self.register_buffer("offset", offset.view(1, -1, 1, 1))
        else:
            mixing = step.mixing.detach()
            weight, bias = (mixing * scale)[:, :, None, None], mixing @ offset
            halves = (slice(None, step.passive), slice(step.passive, None))
            self.mixing = nn.ModuleList(_conv(weight[half], bias[half]) for half in halves)

    def forward(self, passive: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.before(passive)
        log_scale = self.clamp * torch.tanh(self.log_scale(hidden))
        joined = torch.cat([passive, active * torch.exp(log_scale) + self.shift(hidden)], dim=1)
        if self.mixing is not None:
            first, second = self.mixing
            return first(joined), second(joined), log_scale
        moved = (joined * self.scale + self.offset).index_select(1, self.order)
        return moved[:, : self.passive], moved[:, self.passive :], log_scale


def _conv(weight: Tensor, bias: Tensor | None, padding: int = 0) -> nn.Conv2d:
    """Return a convolution with these weights (out, in, k, k)."""
    out_channels, in_channels, size, _ = weight.shape
    conv = nn.Conv2d(in_channels, out_channels, size, padding=padding, bias=bias is not None)
    conv.weight.data = weight.detach().clone()
    if bias is not None and conv.bias is not None:
        conv.bias.data = bias.detach().clone()
    return conv


def _fold_conv_subnet(subnet: nn.Module, active: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the modules for log-scales and shifts, and the one that both start with."""
    first, _, last = subnet.children()
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    weight, bias = SUBNET_SCALE * last.weight, SUBNET_SCALE * last.bias
    halves = [_conv(weight[half], bias[half]) for half in (slice(None, active), slice(active, None))]
    return halves[0], halves[1], nn.Sequential(_conv(first.weight, first.bias, padding=1), nn.ReLU())


def _fold_resnet_subnet(subnet: nn.Module, active: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the modules as `_fold_conv_subnet` does; the two halves share no first layer."""
    assert isinstance(subnet, ResNetSubnet)
    subnet = deepcopy(subnet)
    conv, norm, _ = subnet.main
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    fused = fuse_conv_bn_eval(conv.eval(), norm.eval())
    weight, bias = fused.weight, fused.bias
    assert bias is not None
    shortcut = subnet.shortcut
    assert shortcut.bias is not None
    halves = []
    for half in (slice(None, active), slice(active, None)):
        # the scale is above 0, so it commutes with the ReLU
        main = _conv(SUBNET_SCALE * weight[half], SUBNET_SCALE * bias[half], padding=1)
        halves.append(_Sum(main, _conv(SUBNET_SCALE * shortcut.weight[half], SUBNET_SCALE * shortcut.bias[half])))
    return halves[0], halves[1], nn.Identity()


class _Sum(nn.Module):
    """ReLU of one convolution, plus another convolution of the same input."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, features: Tensor) -> Tensor:
        total: Tensor = F.relu(self.main(features)) + self.shortcut(features)
        return total

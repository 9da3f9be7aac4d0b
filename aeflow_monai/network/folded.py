"""AE-Flow for inference: what is constant once it is trained is computed once, and nothing that nobody asks for."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aeflow_monai.network.aeflow import AEFlow, AEFlowOutput
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.network.feature_norm import FeatureNorm
from aeflow_monai.network.flow import (
    SUBNET_SCALE,
    ConvSubnet,
    FlowStep,
    LatentFlow,
    ResNetSubnet,
    log_likelihood_per_channel,
)

__all__ = ["FoldedAEFlow", "fold_encoder"]


class FoldedAEFlow(nn.Module):
    """A trained AE-Flow in fewer and larger operations, which gives the same but for rounding.

    Batch norms are part of the convolutions before them, the image's scaling is part of the first one; a flow step's
    global affine and mixing are one convolution, and the parts of its log-determinant that depend on no image are one
    number. It is a copy: what the network learns afterwards does not reach it.

    Args:
        network: trained; is not changed.
        with_likelihood: compute the log-likelihoods too; without, their list is empty.
        image_size: see `fold_encoder`.

    Example:
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
        """Encode, flow, reconstruct; see `AEFlow.forward`."""
        features = self.encoder(image)
        latents, log_likelihoods = [], []
        for flow, stage in zip(self.flows, features, strict=True):
            latent, log_abs_det = flow(stage)
            latents.append(latent)
            if log_abs_det is not None:
                log_likelihoods.append(log_likelihood_per_channel(latent, log_abs_det))
        return AEFlowOutput(latents, log_likelihoods, self.decoder(latents), features)


class _FoldedFlow(nn.Module):
    """A `LatentFlow`; the halves of the channels stay apart from step to step."""

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
        """The latent (N, C, h, w), and log |det J| per position (N, 1, h, w) if it is to be known."""
        joined = features if self.norm is None else self.norm(features)
        passive, active = joined[:, : self.passive], joined[:, self.passive :]
        log_abs_det = self.log_abs_det if self.with_likelihood else None
        for step in self.steps:
            passive, active, log_scale = step(passive, active)
            if log_abs_det is not None:
                log_abs_det = log_abs_det + log_scale.sum(dim=1, keepdim=True)
        return torch.cat([passive, active], dim=1), log_abs_det


class _FoldedNorm(nn.Module):
    """A `FeatureNorm` as a product and a sum."""

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
        deviation = (centred.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-5).rsqrt()  # as a layer norm
        return centred * (deviation * self.scale) + self.shift


class _FoldedStep(nn.Module):
    """A `FlowStep`: its mixing, scale and offset are one convolution for each half of what comes next."""

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
        if step.mixing is None:  # moving channels costs less than mixing them
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
    """A convolution with these weights (out, in, k, k)."""
    out_channels, in_channels, size, _ = weight.shape
    conv = nn.Conv2d(in_channels, out_channels, size, padding=padding, bias=bias is not None)
    conv.weight.data = weight.detach().clone()
    if bias is not None and conv.bias is not None:
        conv.bias.data = bias.detach().clone()
    return conv


def _fold_conv_subnet(subnet: nn.Module, active: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """What gives the log-scales, what gives the shifts, and what both begin with."""
    first, _, last = subnet.children()
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    weight, bias = SUBNET_SCALE * last.weight, SUBNET_SCALE * last.bias
    halves = [_conv(weight[half], bias[half]) for half in (slice(None, active), slice(active, None))]
    return halves[0], halves[1], nn.Sequential(_conv(first.weight, first.bias, padding=1), nn.ReLU())


def _fold_resnet_subnet(subnet: nn.Module, active: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """As `_fold_conv_subnet`; the halves have no beginning in common."""
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
        # the scale is above 0, so that it may stand before the ReLU
        main = _conv(SUBNET_SCALE * weight[half], SUBNET_SCALE * bias[half], padding=1)
        halves.append(_Sum(main, _conv(SUBNET_SCALE * shortcut.weight[half], SUBNET_SCALE * shortcut.bias[half])))
    return halves[0], halves[1], nn.Identity()


class _Sum(nn.Module):
    """ReLU of one convolution, and another beside it."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, features: Tensor) -> Tensor:
        total: Tensor = F.relu(self.main(features)) + self.shortcut(features)
        return total


@torch.no_grad()
def fold_encoder(encoder: Encoder, image_size: Sequence[int] | None = None) -> nn.Module:
    """A copy of an encoder for inference: batch norms, and the scaling of the images, are part of its convolutions.

    What follows what in a backbone is seen by an image that goes through it. A backbone in which something else happens
    to be between, or that gives other features afterwards, stays as it is.

    Args:
        encoder: is not changed.
        image_size: rows and columns of images that it takes, where it does not take any.

    Returns:
        A module in evaluation mode that takes images (N, C, H, W) in [0, 1] and gives the features of `Encoder`.

    Example:
        >>> encoder = Encoder("tf_efficientnet_lite0", stages=[2]).eval()
        >>> image = torch.rand(1, 1, 64, 64)
        >>> torch.allclose(fold_encoder(encoder)(image)[0], encoder(image)[0], atol=1e-3)
        True
    """
    plain = _Scaled(encoder)
    if not any(isinstance(module, _BatchNorm) for module in plain.modules()):
        return plain
    probe = _probe(encoder, image_size)
    folded = deepcopy(plain)
    first, pairs = _order_of(folded, probe)
    for conv_name, norm_name in pairs:
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        _replace(folded, conv_name, fuse_conv_bn_eval(conv, norm))  # type: ignore[arg-type, type-var]
        # timm's batch norms bring their activation along
        _replace(folded, norm_name, getattr(norm, "act", None) or nn.Identity())
    for name, module in list(folded.named_modules()):
        if isinstance(module, Conv2dSame):
            _replace(folded, name, _SameConv(module))
    if first is not None:
        folded.fold_scaling(folded.get_submodule(first))
    pairs_of_features = zip(plain(probe), folded(probe), strict=True)
    same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max())) for a, b in pairs_of_features)
    return folded if same else plain


class _SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding, in numbers that a runtime's model takes as constants."""

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__(1, 1, 1)
        self.__dict__.update(conv.__dict__)

    def forward(self, image: Tensor) -> Tensor:
        sides = []
        for size, kernel, stride, dilation in zip(
            image.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1], strict=True
        ):
            missing = max(0, (-(-int(size) // stride) - 1) * stride + (kernel - 1) * dilation + 1 - int(size))
            sides += [missing // 2, missing - missing // 2]
        if torch.onnx.is_in_onnx_export():
            return _PaddedConv.apply(image, self.weight, self.bias, sides, self)  # type: ignore[no-any-return]
        padded = F.pad(image, sides) if any(sides) else image
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class _PaddedConv(torch.autograd.Function):
    """A convolution that pads each side by itself, as ONNX can: a padding before it costs a third more time there."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, sides: list[int], conv: Any) -> Tensor:
        return F.conv2d(F.pad(image, sides), weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    @staticmethod
    def symbolic(graph: Any, image: Any, weight: Any, bias: Any, sides: list[int], conv: Any) -> Any:
        left, right, top, bottom = sides
        of_bias = [] if conv.bias is None else [bias]
        return graph.op(
            "Conv",
            *(image, weight, *of_bias),
            kernel_shape_i=[*conv.kernel_size],
            pads_i=[top, left, bottom, right],
            strides_i=[*conv.stride],
            dilations_i=[*conv.dilation],
            group_i=conv.groups,
        )


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)


def _probe(encoder: Encoder, image_size: Sequence[int] | None) -> Tensor:
    """An image that the encoder takes, with contrasts."""
    height, width = image_size or [2 * encoder.strides[-1]] * 2
    pixels = torch.linspace(0, 40, encoder.in_channels * height * width).sin().square()
    return pixels.view(1, encoder.in_channels, height, width).to(encoder.mean)


class _Scaled(nn.Module):
    """A copy of an `Encoder` whose scaling can become part of its first convolution."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.backbone = deepcopy(encoder.backbone)
        self.in_channels, self.channels_last = encoder.in_channels, encoder.channels_last
        self.register_buffer("mean", encoder.mean.clone())
        self.register_buffer("std", encoder.std.clone())
        self.divides = True
        self.requires_grad_(False)
        self.eval()

    def fold_scaling(self, conv: nn.Module) -> None:
        """Divide the weights of the first convolution in place of the image; the mean stays, for the padding's sake."""
        assert isinstance(conv, nn.Conv2d)
        conv.weight.data = conv.weight / self.std
        self.divides = False
        if self.in_channels == 1 and bool((self.mean == self.mean[:, :1]).all()):
            # one channel, and not three copies of it
            conv.weight.data = conv.weight.sum(dim=1, keepdim=True)
            conv.in_channels = 1
            self.mean = self.mean[:, :1].clone()

    def forward(self, image: Tensor) -> list[Tensor]:
        centred = image - self.mean
        stages = list(self.backbone(centred / self.std if self.divides else centred))
        return [stage.permute(0, 3, 1, 2) for stage in stages] if self.channels_last else stages


def _order_of(scaled: _Scaled, image: Tensor) -> tuple[str | None, list[tuple[str, str]]]:
    """Name of the convolution that takes the image, and of pairs of a convolution and the batch norm after it."""
    names = {module: name for name, module in scaled.named_modules() if isinstance(module, (nn.Conv2d, _BatchNorm))}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls.append((module, inputs[0], output))  # which keeps the tensors, so that none is taken for another

    seen: list[Tensor] = []
    hooks = [module.register_forward_hook(note) for module in names]
    hooks.append(scaled.backbone.register_forward_pre_hook(partial(_note_input, seen)))
    scaled(image)
    for hook in hooks:
        hook.remove()
    once = [module for module in names if sum(called is module for called, _, _ in calls) == 1]
    made_by = {id(output): module for module, _, output in calls if isinstance(module, nn.Conv2d) and module in once}
    pairs = [
        (names[made_by[id(given)]], names[module])
        for module, given, _ in calls
        if isinstance(module, _BatchNorm) and module in once and id(given) in made_by
    ]
    first = [names[module] for module, given, _ in calls if isinstance(module, nn.Conv2d) and given is seen[0]]
    is_dense = len(first) == 1 and getattr(scaled.get_submodule(first[0]), "groups", 0) == 1
    return first[0] if is_dense else None, pairs


def _note_input(seen: list[Tensor], module: nn.Module, inputs: Sequence[Tensor]) -> None:
    seen.append(inputs[0])

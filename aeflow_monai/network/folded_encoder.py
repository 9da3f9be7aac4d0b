"""The encoder for inference, with batch norms and the scaling of the images folded into its convolutions."""

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

from aeflow_monai.network.encoder import Encoder

__all__ = ["fold_encoder"]


@torch.no_grad()
def fold_encoder(encoder: Encoder, image_size: Sequence[int] | None = None) -> nn.Module:
    """Return a copy of an encoder for inference, with batch norms and image scaling folded into its convolutions.

    The order of a backbone's layers is traced with an image. A backbone that has other operations between convolution
    and batch norm, or whose features change by folding, is left as it is.

    Args:
        encoder: the encoder, which is left unchanged.
        image_size: rows and columns of its images, for encoders that require a fixed size.

    Returns:
        A module in evaluation mode that maps images (N, C, H, W) in [0, 1] to the features of `Encoder`.

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
        # timm's batch norms include their activation
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
    """A convolution with TensorFlow's padding, computed from sizes that an exported model treats as constants."""

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
    """A convolution with separate padding for each side, as in ONNX: a padding layer takes a third more time there."""

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
    """Return an image with contrasts that the encoder accepts."""
    height, width = image_size or [2 * encoder.strides[-1]] * 2
    pixels = torch.linspace(0, 40, encoder.in_channels * height * width).sin().square()
    return pixels.view(1, encoder.in_channels, height, width).to(encoder.mean)


class _Scaled(nn.Module):
    """A copy of an `Encoder` whose image scaling can be folded into its first convolution."""

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
        """Divide the first convolution's weights by the standard deviation; the mean stays, because of the padding."""
        assert isinstance(conv, nn.Conv2d)
        conv.weight.data = conv.weight / self.std
        self.divides = False
        if self.in_channels == 1 and bool((self.mean == self.mean[:, :1]).all()):
            # one input channel in place of three copies of it
            conv.weight.data = conv.weight.sum(dim=1, keepdim=True)
            conv.in_channels = 1
            self.mean = self.mean[:, :1].clone()

    def forward(self, image: Tensor) -> list[Tensor]:
        centred = image - self.mean
        stages = list(self.backbone(centred / self.std if self.divides else centred))
        return [stage.permute(0, 3, 1, 2) for stage in stages] if self.channels_last else stages


def _order_of(scaled: _Scaled, image: Tensor) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the name of the first convolution, and of each pair of a convolution and the batch norm after it."""
    names = {module: name for name, module in scaled.named_modules() if isinstance(module, (nn.Conv2d, _BatchNorm))}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls.append((module, inputs[0], output))  # keeps the tensors alive, so that no id is reused

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

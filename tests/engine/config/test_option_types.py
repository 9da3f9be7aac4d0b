from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from outputs import files_below, said

from aeflow_monai.engine.config.config_content import content_of
from aeflow_monai.engine.config.option_types import expected_of, require_options
from aeflow_monai.engine.config.template import config_files

Run = Callable[..., Any]

# option, wrong value, what its message has to say
WRONG = [
    ("image_size", 100, 'expected two whole numbers, rows and columns, as "[128,128]"; got 100'),
    ("image_size", [128], "got [128]"),
    ("image_size", ["a", "b"], "got ['a', 'b']"),
    ("image_size", [0, 128], "got [0, 128]"),
    ("epochs", "abc", "expected a whole number of 1 or more, or null; got 'abc'"),
    ("epochs", 0, "got 0"),
    ("epochs", -1, "got -1"),
    ("epochs", 2.5, "got 2.5"),
    ("epochs", True, "got True"),
    ("output_dir", 2024.5, "expected a path, or null; got 2024.5"),
    ("axes", "coronal", "expected a list of axial, coronal, sagittal, as \"[axial]\"; got 'coronal'"),
    ("axes", [], "got []"),
    ("axes", ["axial", "axial"], "got ['axial', 'axial']"),
    ("device", "gpu", "expected a device that torch has here, as cpu or cuda:0; got 'gpu'"),
    ("device", "meta", "got 'meta'"),
    ("device", 0, "got 0"),
    ("layout", "BIDS", "expected one of auto, manifest, decathlon"),
    ("batch_size", 0, "expected a whole number of 1 or more, at most 1048576; got 0"),
    ("learning_rate", -1, "expected a number above 0 and at most 1000; got -1"),
    ("learning_rate", 1e300, "got 1e+300"),
    ("learning_rate", float("inf"), "got inf"),
    ("learning_rate", float("nan"), "got nan"),
    ("specificity", 1.5, "expected a number above 0 and below 1; got 1.5"),
    ("test_fraction", 1, "expected a number of 0 or more and below 1; got 1"),
    ("seed", "x", "expected a whole number of 0 or more, at most 4294967295; got 'x'"),
    ("stages", 2, 'expected a list of stages from 0, ascending, as "[2,3]"; got 2'),
    ("stages", [3, 2], "got [3, 2]"),
    ("in_channels", 0, "expected a whole number of 1 or more; got 0"),
    ("modalities", 3, 'expected a list of names, as "[t1,t2]"; got 3'),
    ("normal_classes", [], 'expected a list of names, as "[NORMAL]"; got []'),
    ("normal_classes", [], "got []"),
    ("lesion_free_slices", "yes", "expected true or false; got 'yes'"),
    ("outputs", "anomaly_map", "as \"[anomaly_map,anomaly_mask]\"; got 'anomaly_map'"),
    ("outputs", ["map"], "got ['map']"),
    ("output_ext", "nii", "expected one of .nii.gz, .nii"),
    ("backbone", "nosuch", "expected the name of a timm model; got 'nosuch'"),
    ("backbone", "tf_efficientnet_lite_0", "Did you mean tf_efficientnet_lite0"),
    ("encoder_weights", "/no/file", "expected wheel, hub, random, or the path of a file that exists; got '/no/file'"),
    ("n_bootstrap", 0, "expected a whole number of 1 or more; got 0"),
    ("inferer#saliency", "yes", "expected one of plain, smooth, or null; got 'yes'"),
    ("slicer#slice_range", [100, 60], "got [100, 60]"),
    ("network_def#network#n_steps", "many", "expected a whole number of 1 or more; got 'many'"),
    ("network_def#score#top_fractions", 0.5, "got 0.5"),
]


def nested(name: str, value: Any) -> dict[str, Any]:
    for key in reversed(name.split("#")):
        value = {key: value}
    return dict(value)


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_option(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match="expected") as raised:
        require_options(nested(name, value))
    assert str(raised.value).startswith(f"{name}: expected {expected_of(name)}; got {value!r}.")
    assert message in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_here_is_refused() -> None:
    for device in ("cuda", "cuda:7"):
        with pytest.raises(ValueError, match=f"device: expected a device that torch has here.* got '{device}'"):
            require_options({"device": device})


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"epochs: expected .*\nbatch_size: expected "):
        require_options({"batch_size": 0, "epochs": 0})


@pytest.mark.parametrize(
    "names",
    [
        ["train"],
        ["train", "multi_gpu_train"],
        ["train", "chest_xray", "paper"],
        ["train", "healthy_t1"],
        ["train", "brats2021"],
        ["train", "semi_supervised"],
        ["inference"],
        ["inference", "evaluate"],
        ["calibrate"],
    ],
)
def test_every_default_is_of_its_kind(names: list[str]) -> None:
    parser = ConfigParser()
    parser.read_config(config_files(*names))
    require_options(content_of(parser))


def test_expressions_are_left_to_their_components() -> None:
    require_options({"epochs": "$1 + 1", "axes": "@planes", "device": "$torch.device('cpu')"})


@pytest.mark.parametrize(("name", "value"), [("epochs", "abc"), ("image_size", (100, 100)), ("stages", [9])])
def test_a_training_ends_before_anything_is_read_or_written(
    tmp_path: Path, volumes: Path, start_workflow: Run, tiny_training: dict[str, Any], name: str, value: Any
) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "a/RUN"), "cache_dir": str(tmp_path / "b")}
    with pytest.raises(RuntimeError) as raised:
        start_workflow("train.yaml", **{**tiny_training, **where, name: value})
    assert name in said(raised)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["inference", "evaluate", "calibrate"])
def test_so_do_the_runs_of_a_model(
    tmp_path: Path, volumes: Path, trained: Path, start_workflow: Run, verb: str
) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "a/RUN")}
    with pytest.raises(RuntimeError) as raised:
        start_workflow(trained / f"configs/{verb}.yaml", **where, device="gpu")
    assert "device: expected a device that torch has here, as cpu or cuda:0; got 'gpu'." in said(raised)
    assert not files_below(tmp_path)
    assert not list(tmp_path.iterdir())

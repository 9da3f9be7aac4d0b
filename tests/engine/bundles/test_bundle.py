import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from outputs import BUNDLE, config, differing, files_below, given_of

from aeflow_monai import Detector, Model, config_files
from aeflow_monai.engine.bundles.bundle import write_bundle, write_training_config
from aeflow_monai.engine.config.config_content import with_references
from aeflow_monai.engine.config.fixed_options import require_own_config
from aeflow_monai.engine.config.stored_model import StoredModel, model_path, read_model
from aeflow_monai.engine.runs.run_folders import run_folder
from aeflow_monai.file_digests import sha256_of

VERBS = ("inference", "evaluate", "calibrate")

Run = Callable[..., Any]
Options = dict[str, Any]
EMBEDDED = "$aeflow_monai.data.write_phantom(aeflow_monai.files.home('phantom'))"


def test_a_training_leaves_a_complete_bundle(trained: Path) -> None:
    logs = {name for name in files_below(trained) if name.startswith("logs/")}
    assert files_below(trained) - logs == BUNDLE
    assert {name for name in logs if "tensorboard" not in name} == {
        "logs/run.json",
        "logs/checkpoints/checkpoint_epoch=2.pt",
        "logs/checkpoints/checkpoint_epoch=3.pt",
    }
    assert any("tensorboard/events" in name for name in logs)
    record = json.loads((trained / "logs/run.json").read_text())
    assert {"aeflow_monai", "python", "torch", "monai", "numpy", "timm"} < record["versions"].keys()
    assert (record["state"], len(record["trained_on"]), len(record["held_out"])) == ("finished", 5, 1)
    assert (record["seed"], record["specificity"], record["data"]["trained on: cases"]) == (0, 0.95, 5)
    assert [each["started"][:2] for each in record["commands"]] == ["20"]


def test_the_model_holds_its_config_as_text_and_nothing_that_runs(trained: Path, tiny_training: Options) -> None:
    content = torch.load(trained / "models/model.pt", weights_only=True)
    assert content.keys() == {"model", "config"}
    assert isinstance(content["config"], str)
    assert {name.partition(".")[0] for name in content["model"]} == {"network", "score"}
    stored = read_model(trained / "models/model.pt")
    assert differing(dict(stored.state), content["model"]) == []
    assert stored.config["image_size"] == tiny_training["image_size"]
    assert stored.config["network_def"]["network"]["n_steps"] == 2
    assert stored.config["slicer"]["min_foreground"] == 0.0
    assert {"dataset_dir", "output_dir", "resume", "cache_dir"}.isdisjoint(stored.config)
    assert stored.card["seed"] == 0


def test_no_path_of_the_training_is_in_its_bundle(trained: Path, volumes: Path) -> None:
    texts = [read_text for name in BUNDLE - {"models/model.pt"} if (read_text := (trained / name).read_text())]
    texts.append(torch.load(trained / "models/model.pt", weights_only=True)["config"])
    root = str(trained.parent.parent)
    assert str(volumes).startswith(root)
    assert [text for text in texts if root in text] == []


def test_absolute_paths_in_options_are_left_out_of_model_and_card(
    tmp_path: Path, stored: StoredModel, detector: Detector
) -> None:
    weights = "/home/someone/weights.safetensors"
    config = {**stored.config, "encoder_weights": weights, "dataset_dir": "/home/someone/scans"}
    write_bundle(tmp_path, detector, config, stored.card)
    text = torch.load(model_path(tmp_path), weights_only=True)["config"]
    card = (tmp_path / "docs/README.md").read_text()
    assert "someone" not in text + card
    assert '`encoder_weights`: "weights.safetensors"' in card
    for verb in VERBS:
        assert "someone" not in (tmp_path / f"configs/{verb}.yaml").read_text()
        require_own_config(tmp_path, given_of(tmp_path / f"configs/{verb}.yaml"))
        require_own_config(tmp_path, given_of(tmp_path / f"configs/{verb}.yaml", encoder_weights=weights))


def test_an_absolute_path_in_the_preprocessing_is_no_other_option(
    tmp_path: Path, stored: StoredModel, detector: Detector
) -> None:
    intensity = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 1, "note": "/data/mask.npy"}
    write_bundle(tmp_path, detector, {**stored.config, "intensity": intensity}, stored.card)
    for verb in VERBS:
        require_own_config(tmp_path, given_of(tmp_path / f"configs/{verb}.yaml"))


def test_the_data_are_asked_for_unless_they_are_the_embedded_ones(
    tmp_path: Path, trained: Path, stored: StoredModel, detector: Detector
) -> None:
    write_bundle(tmp_path, detector, {**stored.config, "dataset_dir": EMBEDDED}, stored.card)
    for name in ("train", "inference", "evaluate"):
        assert config(trained, name)["dataset_dir"] is None
        assert config(tmp_path, name)["dataset_dir"] == EMBEDDED
    assert config(tmp_path, "calibrate")["dataset_dir"] is None  # its normals were trained on


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_training_fixes_stands_in_each_config(trained: Path, verb: str) -> None:
    train, own = config(trained, "train"), config(trained, verb)
    fixed = with_references(train, ("network_def", "slicer", "preprocessing", "modalities"))
    assert {"backbone", "stages", "axes", "image_size", "in_channels", "intensity", "resampling"} <= set(fixed)
    expected = {key: deepcopy(train[key]) for key in fixed if key != "encoder_weights"}
    expected["network_def"]["network"]["encoder"]["weights"] = "checkpoint"  # they are in model.pt
    assert {key: own[key] for key in expected} == expected
    assert "encoder_weights" not in own
    if verb != "inference":
        of_the_data = {"layout", "normal_classes", "test_fraction", "seed", "lesion_free_slices", "specificity"}
        assert {key: own[key] for key in of_the_data & own.keys()} == {
            key: train[key] for key in of_the_data & own.keys()
        }


def test_the_training_config_goes_on_in_its_own_folder(trained: Path, tiny_training: Options) -> None:
    given = given_of(trained / "configs/train.yaml")
    assert given.bundle_root == str(trained)
    expected = given_of(*map(Path, config_files("train")), **tiny_training).content
    expected |= {"dataset_dir": None, "output_dir": "$@bundle_root"}
    assert given.content == expected


def test_an_unfinished_training_leaves_what_it_needs_to_go_on(tmp_path: Path, tiny_training: Options) -> None:
    given = given_of(*map(Path, config_files("train")), **tiny_training)
    write_training_config(tmp_path, given, {"seed": 3})
    assert files_below(tmp_path) == {"LICENSE", "configs/logging.conf", "configs/train.yaml", "logs/run.json"}
    assert json.loads((tmp_path / "logs/run.json").read_text())["seed"] == 3
    with pytest.raises(FileNotFoundError, match=r"no trained model .* go on with an interrupted training \(--resume"):
        require_own_config(tmp_path, None)


def test_metadata_say_what_the_network_takes(tmp_path: Path, trained: Path, stored: StoredModel) -> None:
    metadata = json.loads((trained / "configs/metadata.json").read_text())
    assert metadata["model_sha256"] == sha256_of(trained / "models/model.pt")
    image = metadata["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"]) == (1, ["16*n", "16*n"])
    detector = Model(trained).detector
    detector.network.encoder.in_channels = 2
    write_bundle(tmp_path, detector, stored.config, stored.card)
    image = json.loads((tmp_path / "configs/metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["channel_def"]) == (2, {"0": "channel 0", "1": "channel 1"})


def test_a_calibration_that_gives_no_finite_threshold_gives_no_model(
    tmp_path: Path, trained: Path, stored: StoredModel
) -> None:
    detector = Model(trained).detector
    detector.score.slice_threshold.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"gave NaN or infinite values in score\.slice_threshold: .* none is written"):
        write_bundle(tmp_path / "RUN", detector, stored.config, stored.card)
    assert not (tmp_path / "RUN").exists()


def test_a_bundle_in_place_of_another_keeps_nothing_of_it(
    bundle: Path, stored: StoredModel, detector: Detector
) -> None:
    write_bundle(bundle, detector, {**stored.config, "epochs": 7}, stored.card)
    assert config(bundle, "train")["epochs"] == 7
    assert "`epochs`: 7" in (bundle / "docs/README.md").read_text()
    require_own_config(bundle, given_of(bundle / "configs/inference.yaml"))


def test_the_folder_of_a_run_is_the_one_given_or_a_new_one_below_home(
    tmp_path: Path, aeflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_folder("here") == str(tmp_path / "here")
    assert run_folder("~/there") == str(Path.home() / "there")
    assert Path(run_folder(None)).parent == aeflow_home / "runs"
    assert run_folder(None).endswith(f"-{os.getpid()}")  # two that start together have folders of their own
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_folder("here") == str(tmp_path / "here")
    with pytest.raises(ValueError, match="give --output_dir"):
        run_folder(None)

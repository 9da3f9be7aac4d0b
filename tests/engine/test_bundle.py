import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from outputs import BUNDLE, differing, files_below, model_state, said

from aeflow_monai import Detector, Model, Workflow, config_files
from aeflow_monai.engine.bundle import run_folder, write_bundle, write_training_config
from aeflow_monai.engine.config import GivenConfig, with_references
from aeflow_monai.engine.fixed_options import require_own_config
from aeflow_monai.engine.stored_model import StoredModel, model_path, read_model
from aeflow_monai.files import sha256_of

VERBS = ("inference", "evaluate", "calibrate")
EMBEDDED = "$aeflow_monai.data.write_phantom(aeflow_monai.files.home('phantom'))"

Run = Callable[..., Any]
Options = dict[str, Any]


@pytest.fixture
def bundle(tmp_path: Path, trained: Path) -> Path:
    """A copy of the trained bundle without its logs."""
    return shutil.copytree(trained, tmp_path / "RUN", ignore=shutil.ignore_patterns("logs"))


@pytest.fixture
def stored(trained: Path) -> StoredModel:
    return read_model(model_path(trained))


@pytest.fixture
def detector(trained: Path) -> Detector:
    return Model(trained).detector


def config(run: Path, name: str) -> Options:
    content: Options = yaml.safe_load((run / f"configs/{name}.yaml").read_text(encoding="utf-8"))
    return content


def given_of(*files: Path, **options: Any) -> GivenConfig:
    given: GivenConfig = Workflow([str(f) for f in files], workflow_type=None, logging_file=False, **options).parser[
        "given"
    ]
    return given


# --- what a training writes -------------------------------------------------------------------------------------------


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
    assert {"aeflow_monai", "python", "torch", "monai", "numpy", "timm"} == record["versions"].keys()
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
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_folder("here") == str(tmp_path / "here")
    with pytest.raises(ValueError, match="give --output_dir"):
        run_folder(None)


# --- reading a model --------------------------------------------------------------------------------------------------


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no trained model at .*absent\.pt\. Train one first"):
        read_model(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="There is no trained model at"):
        read_model(tmp_path)  # a folder is no model


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_model_that_is_cut_short_is_named(tmp_path: Path, trained: Path, share: float) -> None:
    whole = (trained / "models/model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.pt is no model, or not whole"):
        read_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), {"state_dict": {}}, {"model": 3}, {"model": {"weight": "none"}}, torch.nn.Linear(2, 2), "text"],
)
def test_a_foreign_file_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "model.pt"
    if content == "text":
        path.write_text("weights, promised\n")
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"model\.pt is no model.*: expected the model\.pt that a training ends with"):
        read_model(path)


def test_a_model_of_version_0_1_0_says_to_train_again(tmp_path: Path, trained: Path) -> None:
    torch.save({"model": model_state(trained)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"is a model of version 0\.1\.0, which .*Train again with this version"):
        read_model(tmp_path / "model.pt")


def test_a_checkpoint_from_the_middle_of_a_training_is_named_as_that(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"is a checkpoint from the middle of a training.*Finish the .* --resume"):
        read_model(trained / "logs/checkpoints/checkpoint_epoch=3.pt")


# --- what belongs together --------------------------------------------------------------------------------------------


def test_a_model_that_was_moved_into_another_bundle_is_noticed(
    tmp_path: Path, bundle: Path, stored: StoredModel, detector: Detector, volumes: Path, start_workflow: Run
) -> None:
    write_bundle(tmp_path / "other", detector, {**stored.config, "epochs": 7}, stored.card)
    shutil.copy(tmp_path / "other/models/model.pt", bundle / "models/model.pt")
    message = f"{bundle / 'models/model.pt'} is not the model that the bundle in {bundle} was written with"
    with pytest.raises(ValueError, match="is not the model that the bundle"):
        Model(bundle)
    for verb in VERBS:
        with pytest.raises(RuntimeError) as raised:
            start_workflow(bundle / f"configs/{verb}.yaml", dataset_dir=str(volumes), output_dir=str(tmp_path / "out"))
        assert message in said(raised)


@pytest.mark.parametrize("verb", VERBS)
def test_a_config_that_was_edited_is_noticed(bundle: Path, verb: str) -> None:
    file = bundle / f"configs/{verb}.yaml"
    file.write_text(file.read_text().replace("upper: 99.5", "upper: 99.0"))
    named = r"intensity#upper is 99\.0 there, and was 99\.5|intensity#upper \(trained with 99\.5, given 99\.0\)"
    with pytest.raises(ValueError, match=named):
        require_own_config(bundle, given_of(file))
    if verb == "inference":  # which is all that a model is opened with from Python
        with pytest.raises(ValueError, match=r"is not the config that .* was trained with"):
            Model(bundle)


@pytest.mark.parametrize(
    "options",
    [
        {"inferer#slicer": {"_target_": "aeflow_monai.data.Slicer", "fit": "pad"}},
        {"dataset#transform": "@scores"},
        {"network": "$torch.nn.Identity()"},
        {"evaluator#amp": True},
        {"evaluator#val_handlers": []},
        {"inferer#overlap": 0.5},
        {"postprocessing": {"_target_": "Compose", "transforms": []}},
        {"failures#path": None},
        {"results_dir": "elsewhere"},
        {"finalize": []},
        {"bundle_root": "elsewhere"},
        {"given": "nothing"},
    ],
)
def test_what_refers_to_the_fixed_parts_cannot_be_replaced(bundle: Path, options: dict[str, Any]) -> None:
    given = given_of(bundle / "configs/inference.yaml")
    parser = ConfigParser(given.content)
    parser.update(options)
    with pytest.raises(ValueError, match=f"{next(iter(options))}.* of the bundle in .* cannot be replaced"):
        require_own_config(bundle, given._replace(content=parser.get()))


@pytest.mark.parametrize("name", ["configs/metadata.json", "configs/inference.yaml"])
def test_a_bundle_that_is_not_whole_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"is not whole: .*{Path(name).name} is missing"):
        Model(bundle)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": [128, 128]}, "image_size (trained with [64, 64], given [128, 128])"),
        ({"stages": [3]}, "stages (trained with [2, 3], given [3])"),
        ({"axes": ["axial", "coronal"]}, "axes (trained with ['axial'], given ['axial', 'coronal'])"),
        ({"modalities": ["t1"]}, "modalities (trained with [], given ['t1'])"),
        ({"network_def#network#n_steps": 3}, "network_def#network#n_steps (trained with 2, given 3)"),
        ({"network_def#network#subnet": "resnet"}, "network_def#network#subnet (trained with 'conv', given 'resnet')"),
        ({"network_def#score#beta": 0.5}, "network_def#score#beta (trained with 0.9, given 0.5)"),
        ({"network_def#flow_term": "likelihood"}, "(trained with 'latent', given 'likelihood')"),
        ({"network_def#score#betta": 0.5}, "network_def#score#betta (trained with None, given 0.5)"),
        ({"slicer#fit": "pad"}, "slicer#fit (trained with 'resize', given 'pad')"),
        ({"intensity#upper": 99.0}, "intensity#upper (trained with 99.5, given 99.0)"),
        ({"resampling": None}, "resampling (trained with {'_target_': 'Identityd', 'keys': 'image'}, given None)"),
        # of the training alone
        ({"lesion_copies": 1}, "lesion_copies (trained with 0, given 1)"),
        ({"epochs": 4}, "epochs (trained with 3, given 4)"),
        ({"epochs": 4, "learning_rate": 0.1}, "epochs (trained with 3, given 4); learning_rate (trained with 0.001,"),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_an_option_that_the_training_fixed_cannot_be_changed(
    trained: Path, verb: str, options: Options, named: str
) -> None:
    with pytest.raises(ValueError, match="Omit them, or train again with other values") as raised:
        require_own_config(trained, given_of(trained / f"configs/{verb}.yaml", **options))
    assert str(raised.value).startswith(f"The training of {trained} has fixed these options: ")
    assert named in str(raised.value)


@pytest.mark.parametrize("verb", VERBS)
def test_what_the_training_fixed_may_be_said_again(
    tmp_path: Path, trained: Path, tiny_training: Options, verb: str
) -> None:
    file = trained / f"configs/{verb}.yaml"
    # a training fixes the seed of its own, evaluation and calibration draw theirs
    require_own_config(trained, given_of(file, **tiny_training, encoder_weights="wheel"))
    require_own_config(trained, given_of(file, image_size=(64, 64)))
    preset = tmp_path / "preset.yaml"
    preset.write_text(yaml.safe_dump({**tiny_training, "optimizer": config(trained, "train")["optimizer"]}))
    require_own_config(trained, given_of(file, preset))


@pytest.mark.filterwarnings("ignore:Can't merge entry:UserWarning")
@pytest.mark.parametrize(
    ("preset", "named"),
    [
        ({"+loss": {"weight": 0.5}}, ""),
        ({"+loss": {"weight": 0.25}}, r"loss#weight \(trained with 0\.5, given 0\.25\)"),
        ({"+train": {"dataloader": {"num_workers": 0}}}, ""),
        ({"+train": {"dataloader": {"num_workers": 2}}}, "train#dataloader#num_workers"),
        ({"+train": {"dataloadr": {}}}, r"train#dataloadr \(trained with None, given {}\)"),
    ],
)
def test_a_preset_that_adds_to_a_section_is_compared_in_what_it_says(
    tmp_path: Path, trained: Path, preset: Options, named: str
) -> None:
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(preset))
    given = given_of(trained / "configs/inference.yaml", tmp_path / "preset.yaml")
    if named:
        with pytest.raises(ValueError, match=named):
            require_own_config(trained, given)
    else:
        require_own_config(trained, given)


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("inference", {"imagesize": [64, 64]}, "'imagesize' (did you mean 'image_size'?)"),
        ("inference", {"output": []}, "'output' (did you mean 'outputs'?)"),
        ("evaluate", {"n_bootstraps": 10}, "'n_bootstraps' (did you mean 'n_bootstrap'?)"),
        ("calibrate", {"specifity": 0.9}, "'specifity' (did you mean 'specificity'?)"),
    ],
)
def test_an_unknown_option_is_refused(trained: Path, verb: str, options: Options, message: str) -> None:
    with pytest.raises(ValueError, match="The config has keys that nothing reads") as raised:
        require_own_config(trained, given_of(trained / f"configs/{verb}.yaml", **options))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("inference", {"layout": "folder", "output_ext": ".nii", "outputs": [], "inferer#saliency": "plain"}),
        ("inference", {"inferer#batch_size": 2, "device": "cpu"}),
        ("evaluate", {"n_bootstrap": 10, "test_fraction": 0.2, "seed": 3, "normal_classes": ["HEALTHY"]}),
        ("calibrate", {"specificity": 0.9, "lesion_free_slices": True}),
    ],
)
def test_what_a_run_decides_is_free(trained: Path, verb: str, options: Options) -> None:
    require_own_config(trained, given_of(trained / f"configs/{verb}.yaml", **options))

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser
from outputs import config, given_of, said

from aeflow_monai import Detector, Model
from aeflow_monai.engine.bundles.bundle import write_bundle
from aeflow_monai.engine.config.config_text import read_config
from aeflow_monai.engine.config.fixed_options import require_own_config
from aeflow_monai.engine.config.stored_model import StoredModel
from aeflow_monai.engine.config.workflow import GivenConfig

VERBS = ("inference", "evaluate", "calibrate")

Run = Callable[..., Any]
Options = dict[str, Any]


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
    with pytest.raises(ValueError, match=r"is not as the training wrote it"):
        given_of(file)
    with pytest.raises(ValueError, match=named):  # as from the command line
        require_own_config(bundle, GivenConfig((file,), read_config(file)))
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


def test_a_reference_may_be_said_again_by_its_value(tmp_path: Path, trained: Path) -> None:
    slicer = {**config(trained, "inference")["slicer"], "axes": ["axial"], "image_size": [64, 64]}
    preset, other = tmp_path / "preset.yaml", tmp_path / "other.yaml"
    preset.write_text(yaml.safe_dump({"slicer": slicer}))
    other.write_text(yaml.safe_dump({"slicer": {**slicer, "axes": ["coronal"]}}))
    require_own_config(trained, given_of(trained / "configs/inference.yaml", preset))
    with pytest.raises(ValueError, match=r"slicer#axes \(trained with \['axial'\], given \['coronal'\]\)"):
        require_own_config(trained, given_of(trained / "configs/inference.yaml", other))


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

from typing import Any

import pytest
from monai.bundle import ConfigParser

from aeflow_monai.engine.config.arguments import refuse_other_kinds, refuse_unknown_arguments
from aeflow_monai.engine.config.config_content import content_of
from aeflow_monai.engine.config.config_text import read_config
from aeflow_monai.engine.config.template import config_files


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"_target_": "aeflow_monai.data.Slicer", "fitt": "pad"}, "Slicer takes no part#fitt (did you mean 'fit'?)"),
        (
            {"_target_": "torch.optim.AdamW", "weight_dcay": 0},
            "AdamW takes no part#weight_dcay (did you mean 'weight_d",
        ),
        (
            {"_target_": "DataLoader", "num_wokers": 2},
            "DataLoader takes no part#num_wokers (did you mean 'num_workers'?)",
        ),
        ({"_target_": "aeflow_monai.engine.GuardedEvaluator", "apm": 1}, "takes no part#apm (did you mean 'amp'?)"),
        ({"_target_": "aeflow_monai.engine.end_training", "zzz": 1}, "end_training takes no part#zzz."),
    ],
)
def test_a_misspelt_argument_is_named(component: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="takes no") as raised:
        refuse_unknown_arguments({"part": component})
    assert message in str(raised.value)
    with pytest.raises(ValueError, match="takes no parts#0#inner"):
        refuse_unknown_arguments({"parts": [{"inner": component}]})


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"_target_": "Spacingd", "keys": "image"}, "Spacingd lacks part#pixdim. Check the spelling"),
        ({"_target_": None, "keys": "image"}, "part names no component, but None"),
    ],
)
def test_what_is_missing_is_named(component: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refuse_unknown_arguments({"part": component})


def test_what_cannot_be_known_is_left_to_python() -> None:
    refuse_unknown_arguments({"a": {"_target_": "nowhere.Nothing", "x": 1}, "b": {"_target_": "$@c", "x": 1}})
    refuse_unknown_arguments({"a": {"_target_": "dict", "x": 1, "_disabled_": True}})


@pytest.mark.parametrize(
    "names", [["train", "multi_gpu_train"], ["train", "chest_xray", "paper"], ["inference", "evaluate"], ["calibrate"]]
)
def test_the_package_spells_its_own_arguments(names: list[str]) -> None:
    parser = ConfigParser()
    parser.read_config(config_files(*names))
    refuse_unknown_arguments(content_of(parser))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train", 1, "train: expected a section of the config; got 1. Omit it"),
        ("preprocessing", [], r"preprocessing: expected a section of the config; got \[\]"),
        ("validate#evaluator", 1, "validate#evaluator: expected a section"),
        ("train#handlers", 1, "train#handlers: expected a list of components; got 1"),
        ("run_dir", "/data", r"run_dir: expected an expression, as '\$aeflow.*; got '/data'"),
        ("split", [], r"split: expected an expression, as .*; got \[\]"),
    ],
)
def test_parts_of_a_training_are_replaced_by_parts_of_their_kind(name: str, value: Any, message: str) -> None:
    parser = ConfigParser()
    parser.read_config(config_files("train"))
    parser[name] = value
    with pytest.raises(ValueError, match=message):
        refuse_other_kinds(content_of(parser), read_config(*config_files("train")))


@pytest.mark.parametrize(
    "preset", ["chest_xray", "healthy_t1", "brats2021", "paper", "semi_supervised", "multi_gpu_train"]
)
def test_presets_and_options_below_keep_the_kinds(preset: str) -> None:
    parser = ConfigParser()
    parser.read_config(config_files("train", preset))
    parser["optimizer#lr"] = 0.01
    refuse_other_kinds(content_of(parser), read_config(*config_files("train")))

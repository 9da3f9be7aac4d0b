"""The config files of a bundle, damaged or changed by hand."""

from pathlib import Path

import pytest

from aeflow_monai import Model, Workflow
from aeflow_monai.engine.config.own_configs import require_unchanged

NAMES = ["inference", "evaluate", "calibrate"]


@pytest.mark.parametrize("name", NAMES)
def test_as_written(bundle: Path, name: str) -> None:
    require_unchanged(bundle / f"configs/{name}.yaml")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("begin_", "bigin_"),
        ("import aeflow_monai", "import aefLow_monai"),
        ("bundle_root:", "bundle_rot:"),
        ("run:", "r:"),
    ],
)
def test_a_change_is_named_before_anything_is_built(bundle: Path, name: str, old: str, new: str) -> None:
    file = bundle / f"configs/{name}.yaml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}\.yaml is not as the training wrote it"):
        Workflow(str(file), workflow_type=None, logging_file=False)


def test_a_file_that_is_cut_between_lines_is_named(bundle: Path) -> None:
    file = bundle / "configs/inference.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: text.index("\nevaluator:") + 1], encoding="utf-8")
    with pytest.raises(ValueError, match=r"inference\.yaml is not as the training wrote it"):
        Model(bundle)
    file.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"inference\.yaml is no config: it is empty"):
        Workflow(str(file), workflow_type=None, logging_file=False)


def test_options_of_a_run_and_remarks_may_be_changed_by_hand(bundle: Path) -> None:
    file = bundle / "configs/evaluate.yaml"
    text = file.read_text(encoding="utf-8").replace("n_bootstrap: 1000", "n_bootstrap: 7  # quick")
    assert "quick" in text
    file.write_text(text, encoding="utf-8")
    require_unchanged(file)


def test_a_bundle_that_says_nothing_of_its_configs_passes(tmp_path: Path) -> None:
    (tmp_path / "inference.yaml").write_text("epochs: 3\n", encoding="utf-8")
    require_unchanged(tmp_path / "inference.yaml")

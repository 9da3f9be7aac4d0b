"""The trained bundle, opened or copied."""

import shutil
from pathlib import Path

import pytest

from aeflow_monai import Detector, Model
from aeflow_monai.engine.config.stored_model import StoredModel, model_path, read_model


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

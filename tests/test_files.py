from pathlib import Path

import pytest

from aeflow_monai.files import home


def test_home_is_the_variable_or_below_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEFLOW_HOME", str(tmp_path / "place"))
    assert home("train", "logs") == str(tmp_path / "place/train/logs")
    monkeypatch.delenv("AEFLOW_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == str(tmp_path / ".aeflow_monai")
    assert not list(tmp_path.iterdir())


def test_home_is_absolute_whatever_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AEFLOW_HOME", "place")
    assert home() == str(tmp_path / "place")
    monkeypatch.setenv("AEFLOW_HOME", "")  # empty is as good as absent
    assert home() == str(Path.home() / ".aeflow_monai")

import importlib.util
import tempfile
from pathlib import Path

import pytest

from aeflow_monai.cli.main import main


@pytest.fixture(autouse=True)
def temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of a server moves the temporary files of its process; other tests get theirs back."""
    monkeypatch.setenv("TMPDIR", tempfile.gettempdir())


def test_the_app_folder_can_be_made_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "--init", "--app", str(tmp_path / "app")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "app")
    assert (tmp_path / "app/main.py").read_text().startswith("from aeflow_monai.label.app import AnomalyApp")


def test_studies_that_are_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = tmp_path / "app"
    assert main(["label", "--studies", str(tmp_path / "absent"), "--app", str(app)]) == 2
    assert "Expected a folder of images at" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()  # MONAI Label would make it
    assert not app.exists()
    assert main(["label", "--app", str(app)]) == 2
    assert "--studies" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("monailabel") is not None, reason="MONAI Label is installed")
def test_without_monai_label_it_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "--studies", str(tmp_path), "--app", str(tmp_path / "app")]) == 2
    assert "pip install 'aeflow_monai[label]'" in capsys.readouterr().err


def test_help_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["label", "--help"])
    assert ended.value.code == 0
    assert "Not a medical device" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "{trained}/models/model.pt"], "Give the folder that its training wrote"),
        (["--model", "{trained}/absent"], "Expected the folder of a bundle at"),
        (["--model", "{trained}", "--preset", "healthy_t1"], "Leave the presets away (healthy_t1)"),
        (["--preset", "brains"], "There is no config 'brains': choose one of"),
    ],
)
def test_a_wrong_start_is_refused_with_the_reason(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    given = [option.format(trained=trained) for option in options]
    assert main(["label", "--studies", str(tmp_path), "--app", str(tmp_path / "app"), *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "app").exists()

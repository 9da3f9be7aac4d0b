"""What `aeflow doctor` finds, where all is well and where it is not."""

import os
from pathlib import Path

import pytest

from aeflow_monai.cli import doctor
from aeflow_monai.cli.main import main

# what `monai.bundle run` says of every config
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

Capture = pytest.CaptureFixture[str]


def test_where_all_is_well(capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr()
    assert "FAIL" not in said.out
    assert said.out.splitlines()[-1] == "Everything that is needed is here and works."
    assert said.err == ""


def test_a_model_is_tried(trained: Path, capsys: Capture) -> None:
    assert main(["doctor", "-m", str(trained)]) == 0
    assert f"a volume was scored with {trained}" in capsys.readouterr().out


def test_a_model_that_is_none_fails_and_the_others_are_looked_at(tmp_path: Path, capsys: Capture) -> None:
    assert main(["doctor", "-m", str(tmp_path)]) == 2
    said = capsys.readouterr()
    lines = said.out.splitlines()
    (failed,) = [number for number, line in enumerate(lines) if line.startswith("FAIL")]
    assert lines[failed].startswith("FAIL  whole way: ")
    assert str(tmp_path) in lines[failed]
    assert "aeflow doctor -v" in lines[failed + 1]
    assert sum(line.startswith(("ok", "note")) for line in lines) >= 6
    assert said.err == "error: What does not work: whole way. What to do stands above.\n"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("AEFLOW_HOME", str(tmp_path / "home"))
    found = list(doctor._disk())
    assert (found[0].state, "AEFLOW_HOME" in found[0].remedy) == ("FAIL", True)


def test_too_old_and_missing_packages() -> None:
    wanted = ["torch>=2.4,<3", "numpy>=999", "no-such-package>=1", "none-either; extra == 'bench'"]
    assert [(requirement, found == "") for requirement, found in doctor.unmet_requirements(wanted)] == [
        ("numpy>=999", False),
        ("no-such-package>=1", True),
    ]

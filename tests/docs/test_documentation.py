"""Blocks of the documentation work as pasted, with small data and models in place of the reader's."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from aeflow_monai.cli.main import main
from aeflow_monai.cli.parsers import parser

# what `monai.bundle run` says of every config
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])


def blocks(page: str, language: str) -> list[str]:
    """Code of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Commands `aeflow ...` of a page's blocks and lines of code."""
    text = page.read_text(encoding="utf-8")
    in_blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).splitlines()
    inline = [code.replace("\n", " ") for code in re.findall(r"`(aeflow [a-z]+ [^`]+)`", text)]
    found = [line.split(" && ")[-1].split("  # ")[0] for line in in_blocks] + inline
    return [shlex.split(line)[1:] for line in found if line.startswith("aeflow ")]


@pytest.fixture
def reader(tmp_path: Path, volumes: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the pages assume it: DATA, RUN and a scan."""
    (tmp_path / "DATA").symlink_to(volumes)
    (tmp_path / "RUN").symlink_to(trained)
    (scan,) = sorted(volumes.rglob("test_abnormal_*.nii.gz"))[:1]
    (tmp_path / "scan.nii.gz").symlink_to(scan)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_commands_are_understood(page: Path) -> None:
    for command in commands(page):
        if not {"VERB", "--help"} & set(command):
            parser().parse_args([argument.replace("...", "RUN") for argument in command])


def test_python_works_as_pasted(reader: Path, tiny_training: dict[str, Any]) -> None:
    *analysis, training = blocks("docs/python.md", "python")
    known: dict[str, Any] = {}
    for code in analysis:
        exec(code, known)
    assert (reader / "scan_anomaly_mask.nii.gz").is_file()
    small = training.replace('"epochs": 1}', f"**{tiny_training}, 'epochs': 1}}")
    assert small != training
    exec(small, known)
    assert (reader / "RUN_2/models/model.pt").is_file()
    (in_readme,) = blocks("README.md", "python")
    exec(in_readme, {})


def test_the_tutorial_of_volumes(reader: Path, tiny_training: dict[str, Any]) -> None:
    (reader / "RUN").unlink()
    tiny = [text for name, value in tiny_training.items() for text in ("--set", f"{name}={value}")]
    for command in commands(ROOT / "docs/tutorial_volumes.md"):
        if "--resume" in command or command[0] == "calibrate":
            continue
        with_data = [argument.replace("DATA/scans", "DATA/images") for argument in command]
        assert main([*with_data, *(tiny if command[0] in ("train", "prepare") else [])]) == 0
    assert (reader / "results/metrics.json").is_file()
    assert len(list((reader / "maps").glob("*_anomaly_map.nii.gz"))) == 12

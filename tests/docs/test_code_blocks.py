"""Every block of code in README and docs works as a reader would paste it, on small data and with a small network.

`NOT_RUN` lists the blocks that cannot be run here. Benchmarks take minutes to hours: of these, each reads its options.
"""

import argparse
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from code_blocks import PAGES, ROOT, Block, all_blocks, inline_commands
from pasted import monai_bundle, paste

import aeflow_monai
from aeflow_monai.cli.main import main
from aeflow_monai.cli.parsers import parser

# what `monai.bundle run` says of every config
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

# page, beginning of the block, why it is not run here
NOT_RUN = [
    ("README.md", 'pip install -e ".[test]"', "installs, and runs these tests"),
    ("docs/development.md", 'pip install -e ".[test]"', "installs, and runs these tests too"),
    ("docs/monai_label.md", "python3 -m venv", "installs; the tests of tests/label run in such an environment"),
    ("docs/monai_label.md", "aeflow label", "serves until it is stopped; tests/label/test_server.py starts it"),
    ("docs/monai_label.md", "from MONAILabelLib", "runs inside 3D Slicer; see tests/label/test_slicer_client.py"),
    ("docs/monai_label.md", "monailabel apps", "serves until it is stopped; tests/label/test_sample_app.py starts it"),
    ("docs/monai_label.md", "server {", "configures nginx"),
    ("docs/several_gpus.md", "torchrun", "starts processes; tests/runs/test_training_runs.py starts two"),
    ("docs/scale.md", "find /archive", "looks through an archive; tests/archive/test_examples.py runs all shards"),
    ("docs/scale.md", "pip install", "needs a cluster; tests/archive/test_ray_workers.py starts one"),
    ("docs/federated.md", "pip install", "installs; tests/runs/test_federated.py runs the job"),
]
# what DATA is where a command needs another than a folder with a manifest
OTHER_DATA = {"layout=brats": "BRATS", "semi_supervised": "LABELLED"}


def reason_of(block: Block) -> str | None:
    """Why a block is not run."""
    return next((why for page, begin, why in NOT_RUN if block.page == page and block.code.startswith(begin)), None)


def kind_of(block: Block) -> str:
    """What test a block has: that of its language, or that of benchmarks, layouts or lines that are printed."""
    if reason_of(block):
        return "listed"
    if "python benchmarks/" in block.code:
        return "benchmark"
    if block.language == "" and block.code.startswith("python "):
        return "bash"
    if block.language == "text" and "DATA" in block.first_line:
        return "layout"
    if block.first_line.startswith("bundle/"):
        return "tree"
    printed = (("docs/command.md", '{"state"'), ("docs/python.md", "case score"))
    if any(block.page == page and block.code.startswith(begin) for page, begin in printed):
        return "printed"
    return block.language if block.language in ("bash", "python", "yaml") else "left out"


def blocks(kind: str, page: str | None = None) -> list[Block]:
    return [block for block in all_blocks() if kind_of(block) == kind and page in (None, block.page)]


def test_no_block_is_left_out() -> None:
    left = [f"{block.name}: {block.first_line}" for block in blocks("left out")]
    assert not left, f"neither run nor listed: {left}"
    used = {reason_of(block) for block in all_blocks()}
    stale = [entry for entry in NOT_RUN if entry[2] not in used]
    assert not stale, f"listed, but not there: {stale}"


def test_the_tree_is_that_of_the_repository() -> None:
    (block,) = blocks("tree")
    folder, shown = ROOT, set()
    for line in block.code.splitlines():
        names, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        parents = [ROOT, ROOT / "aeflow_monai", folder]
        if names.endswith("/"):
            assert (parents[depth] / names).is_dir(), line
            folder = parents[1] / names if depth == 1 else folder
            shown.add(parents[depth] / names.rstrip("/"))
    packages = {path.parent for path in (ROOT / "aeflow_monai").rglob("__init__.py")}
    assert packages - shown == {ROOT / f"aeflow_monai/label/{name}" for name in ("requests", "studies", "tasks")}


@pytest.fixture
def programs(small_training: dict[str, Any]) -> dict[str, Any]:
    """What stands in for the commands: this process, which trains a small network."""

    def aeflow(given: list[str]) -> int:
        trains = given[0] in ("train", "demo") and not {"--dry-run", "--resume"} & set(given)
        small = [text for name, value in small_training.items() for text in ("--set", f"{name}={value}")]
        return main([*given, *(small if trains else [])])

    def python(given: list[str]) -> int:
        assert given[:3] == ["-m", "monai.bundle", "run"]
        small = [text for name, value in small_training.items() for text in (f"--{name}", str(value))]
        return monai_bundle([*given[2:], *(small if given[3] == "train" else [])])

    return {"aeflow": aeflow, "python": python, "pip": lambda given: 0}


@pytest.mark.parametrize("block", blocks("bash"), ids=[block.name for block in blocks("bash")])
def test_bash_works_as_pasted(
    block: Block,
    reader: Path,
    world: Path,
    volumes: Path,
    programs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (aeflow_monai, aeflow_monai.data):
        monkeypatch.setattr(module, "write_phantom", lambda *_, **__: volumes)  # small in place of the demo's 80
    commands = block.code.replace("\\\n", "").splitlines()
    named = {line: set(re.findall(r" (?:-o|--output_dir) (\w+)", line)) for line in commands}
    written = set().union(*(names for line, names in named.items() if "--dry-run" not in line))
    for name in set().union(*named.values()) & {path.name for path in reader.iterdir()}:
        place = reader / name
        place.unlink() if place.is_symlink() else shutil.rmtree(place)
    for words, name in OTHER_DATA.items():
        if words in block.code:
            (reader / "DATA").unlink()
            (reader / "DATA").symlink_to(world / name)
    if "mv APP" in block.code:
        (reader / "APP").unlink()
        shutil.copytree(world / "APP", reader / "APP")
    paste(block.code, reader, programs, HOME=str(reader))
    for name in written:
        assert any((reader / name).iterdir()), f"nothing was written to {name}"


PYTHON = sorted({block.page for block in blocks("python")})


@pytest.mark.parametrize("page", PYTHON)
def test_python_works_as_pasted(page: str, reader: Path, small_training: dict[str, Any]) -> None:
    """The blocks of a page one after the other, since the next uses names of the one before."""
    known: dict[str, Any] = {}
    for block in blocks("python", page):
        code = block.code.replace('"epochs": 1}', f"**{small_training}}}")
        assert ("Workflow(" in code) == (code != block.code)
        exec(compile(code, block.name, "exec"), known)
    if page == "docs/python.md":
        assert (reader / "scan_anomaly_mask.nii.gz").is_file()
        assert (reader / "RUN_2/models/model.pt").is_file()


def test_a_prediction_prints_what_the_page_shows(reader: Path) -> None:
    (shown,) = blocks("printed", "docs/python.md")

    def shape(text: str) -> list[str]:
        """The words, with # in place of numbers, and one verdict, axis and direction in place of any."""
        words = re.sub(
            r"[+-]?\d[\d.]*",
            "#",
            re.sub(r"\b[ijk] =", "k =", text.replace("abnormal", "normal").replace("normals", "normal")),
        )
        return [line.strip() for line in re.sub(r"\b[SI] #", "S #", words).strip().splitlines()]

    assert shape(str(aeflow_monai.predict("scan.nii.gz", model="RUN"))) == shape(shown.code)


def test_json_lines_have_the_keys_that_the_page_shows(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = blocks("printed", "docs/command.md")
    (reader / "cut.nii.gz").write_bytes((reader / "scan.nii.gz").read_bytes()[:1000])
    assert main(["predict", "scan.nii.gz", "cut.nii.gz", "-m", "RUN", "-o", "maps", "--json"]) == 1
    printed = {found["state"]: found for found in map(json.loads, capsys.readouterr().out.splitlines())}
    for line in shown.code.splitlines():
        found = printed[re.findall(r'"state": "(\w+)"', line)[0]]
        keys = re.findall(r'"(\w+)": ', line)  # "..." stands for further ones
        assert [key for key in found if key in keys] == keys
        for key, value in re.findall(r'"(state|case|stage)": "(\w+)"', line):
            assert found[key] == value
        if "..., " not in line:
            assert list(found) == keys, "the page shows the whole line"


class _Read(Exception):
    """A benchmark has read its options."""


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parser of `aeflow`, and by those of the benchmarks, in blocks and in the text."""
    code = "\n".join(block.code for block in all_blocks() if block.page == page)
    lines = code.replace("\\\n", "").splitlines()
    for line in [*lines, *inline_commands(page, "aeflow"), *inline_commands(page, "python benchmarks/")]:
        for part in line.partition("  # ")[0].split(" && "):
            program, _, rest = re.sub(r"^(\w+=('.*?'|\S+) )*", "", part.strip()).partition(" ")
            if program == "aeflow":
                _read_by_aeflow(rest)
            elif program == "python" and rest.startswith("benchmarks/"):
                _read_by_benchmark(rest, monkeypatch)


def _read_by_aeflow(rest: str) -> None:
    given = shlex.split(rest.partition(" > ")[0].replace("...", "RUN"))
    if {"VERB", "--help", "--print-completion"} & set(given):
        return
    if len(given) == 1:  # the text names a verb
        with pytest.raises(SystemExit, match="0"):
            parser().parse_args([*given, "--help"])
        return
    parser().parse_args(given)


def _read_by_benchmark(rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *given = shlex.split(re.sub(r"\[(--[^]]+)\]", r"\1", rest).replace(" ...", "").replace(" N ", " 5 "))
    path = ROOT / script
    read = argparse.ArgumentParser.parse_known_args

    def stop(own: argparse.ArgumentParser, *_: Any) -> None:
        _, unknown = read(own, given)
        assert "parse_with_options" in path.read_text(encoding="utf-8") or not unknown, unknown
        raise _Read

    with monkeypatch.context() as patch:
        for folder in (ROOT / "benchmarks", path.parent):
            patch.syspath_prepend(folder)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        with pytest.raises(_Read):
            runpy.run_path(str(path), run_name="__main__")

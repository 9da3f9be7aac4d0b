import errno
import gzip
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aeflow_monai import compression
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.files import case_file_name, home, read_json, replacing, sweep, write_json

# --- home -------------------------------------------------------------------------------------------------------------


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


# --- replacing --------------------------------------------------------------------------------------------------------


def test_a_file_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/map.nii.gz"
    for text in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with replacing(path) as unfinished:
            unfinished.write_text(text)
            assert unfinished.parent == path.parent  # so that it can be moved in one step
            assert unfinished.name.endswith(".nii.gz")  # writers go by the suffix
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, earlier: bool, error: type[BaseException]) -> None:
    path = tmp_path / "report.txt"
    if earlier:
        path.write_text("earlier")

    def write_half() -> None:
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["earlier"] * earlier


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    write_json(path, {"b": 1, "a": [0.1]})
    assert list(json.loads(path.read_text())) == ["b", "a"]
    before = path.read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_json_need_not_be_there_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert read_json(path) == {}
    write_json(path, {"name": "Zürich", "n": 3})
    assert read_json(path) == {"name": "Zürich", "n": 3}


# --- full disks -------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    message = r"No space left on device: .*map\.nii'"
    with (
        pytest.raises(OSError, match=message) as raised,
        replacing(tmp_path / "map.nii"),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"voxels")
    assert raised.value.errno == errno.ENOSPC
    assert not (tmp_path / "map.nii").exists()


# --- what is left of processes that were killed -----------------------------------------------------------------------

KILLED = """
import os, sys, time
from pathlib import Path
from aeflow_monai.files import new_folder, replacing

folder = Path(sys.argv[1])
with replacing(folder / "scores.json") as file, new_folder(folder / "maps") as draft:
    for path in (file, draft / "map.nii.gz"):
        path.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_leaves_is_swept_and_what_a_running_one_writes_is_not(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2
    assert not left & {"scores.json", "maps"}
    assert sweep(tmp_path) == []
    process.kill()
    process.communicate()
    with replacing(tmp_path / "own.json") as own:
        own.write_text("{}")
        assert set(sweep(tmp_path)) == left
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


# --- names, hashes, compression ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["a", "a.b", "sub-01_ses-2", "a $x_1$ $", "Zürich 3"])
def test_a_case_names_its_files(case: str) -> None:
    assert case_file_name({"case": case}) == case


@pytest.mark.parametrize("case", ["../a", "a/b", "a\\b", "..", "a..b", "", "a\0", 7, None])
def test_a_case_cannot_lead_out_of_the_folder(case: Any) -> None:
    with pytest.raises(ValueError, match=r"case has to be a file name without path separators or '\.\.', got "):
        case_file_name({"case": case})


@pytest.mark.parametrize("n_bytes", [0, 3, 2**20, 2**20 + 1])  # it is read by blocks of 2**20
def test_sha256_is_that_of_all_bytes(tmp_path: Path, n_bytes: int) -> None:
    content = np.random.default_rng(0).bytes(n_bytes)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == sha256_of(str(tmp_path / "file")) == hashlib.sha256(content).hexdigest()


def test_without_isal_gzip_is_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    specification = importlib.util.find_spec(compression.__name__)
    plain = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(plain)
    assert plain.gzip is gzip
    assert gzip.decompress(compression.gzip.compress(b"voxels")) == b"voxels"

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aeflow_monai.locks import FolderInUse, claim_folder, release_folder

CLAIMS = """
import sys, time
from aeflow_monai.locks import claim_folder

claim_folder(sys.argv[1], "output_dir")
print("claimed", flush=True)
time.sleep(60)
"""


def claim_elsewhere(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", CLAIMS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "claimed\n"
    return process


def test_the_second_is_refused_until_the_first_is_gone_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new/RUN"
    for end in (signal.SIGKILL, signal.SIGTERM):
        first = claim_elsewhere(folder)
        year = time.strftime("%Y")
        with pytest.raises(FolderInUse, match=rf"RUN: process {first.pid} on .*, since {year}-.*--cache_dir\.$"):
            claim_folder(folder, "cache_dir")
        first.send_signal(end)
        first.communicate()
        claim_folder(folder, "output_dir")
        (folder / "model.pt").touch()
        release_folder(folder)
        assert [file.name for file in folder.iterdir()] == ["model.pt"]


def test_a_folder_that_was_made_for_a_claim_goes_with_it_if_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "earlier").mkdir()
    for name, stays in (("earlier", True), ("new", False)):
        claim_folder(tmp_path / name, "output_dir")
        release_folder(tmp_path / name)
        assert (tmp_path / name).exists() == stays


def test_a_process_may_claim_a_folder_again_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    claim_folder("RUN", "output_dir")
    claim_folder(tmp_path / "RUN", "output_dir")
    release_folder("RUN")
    release_folder("RUN")  # which is not held any more
    first = claim_elsewhere(tmp_path / "RUN")
    first.kill()
    first.communicate()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        claim_folder(tmp_path / "RUN", "output_dir")

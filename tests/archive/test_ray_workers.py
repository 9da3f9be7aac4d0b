"""Workers on a local Ray cluster, which are killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archive_runs import OUTPUTS, Scans

from aeflow_monai.archive import Ledger
from aeflow_monai.archive.ledger import LEDGER
from aeflow_monai.cli.main import main
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.result_tables import rows_of

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

# with a study stored as soon as it is done
COMMAND = """
import sys
from importlib import import_module
import_module("aeflow_monai.archive.ledger")._EVERY = 0.0
from aeflow_monai.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def workers_of(home: str) -> list[int]:
    """Processes of workers whose environment has this folder, which other clusters on the machine have not."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            own = b"_Worker" in (process / "cmdline").read_bytes() and process.name.isdigit()
            if own and f"AEFLOW_HOME={home}\0".encode() in (process / "environ").read_bytes() + b"\0":
                found.append(int(process.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def wait_for_workers(home: str, process: "subprocess.Popen[str]") -> list[int]:
    """The workers of a run, as soon as it has any."""
    while not (workers := workers_of(home)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return workers


def wait_for_a_study(ledger_path: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a study is done."""
    while True:
        assert process.poll() is None, process.communicate()
        if ledger_path.is_file():
            with Ledger(ledger_path, read_only=True) as ledger:
                if ledger.is_begun and ledger.counts().done:
                    return
        time.sleep(0.01)


@pytest.mark.end_to_end
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="workers are found in /proc")
def test_studies_of_killed_workers_are_scored_by_others(tmp_path: Path, scans: Scans, trained: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    command = ["predict", str(scans.listed), "-m", str(trained), *OUTPUTS]
    home = str(tmp_path / "home")
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *command, "-o", tmp_path / "RAY", "--ray", "local", "--workers", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "AEFLOW_HOME": home},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        # one is held before it scores anything, so that however fast the other is, there are studies left
        os.kill(wait_for_workers(home, process)[0], signal.SIGSTOP)
        wait_for_a_study(tmp_path / "RAY/shards/1-of-1" / LEDGER, process)
        for worker in workers_of(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        said, _ = process.communicate(timeout=500)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1, said  # two studies fail
    assert "A worker ended, and another takes its place" in said
    assert f"14 studies: {scans.n_whole} done, 2 failed, 0 open" in said

    assert main([*command, "-o", str(tmp_path / "ONE"), "--resume", "--quiet"]) == 1
    assert rows_of(tmp_path / "RAY/scores.csv") == rows_of(tmp_path / "ONE/scores.csv")
    assert rows_of(tmp_path / "RAY/failures.csv") == rows_of(tmp_path / "ONE/failures.csv")
    ray, one = ({path.name: sha256_of(path) for path in (tmp_path / name).rglob("*.nii.gz")} for name in ("RAY", "ONE"))
    assert ray == one
    assert len(ray) == 2 * scans.n_whole

"""Workers on a local Ray cluster, which are killed."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from archive_runs import OUTPUTS, Scans, Start, wait_until_done

from aeflow_monai.cli.main import main
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.result_tables import rows_of

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


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


@pytest.mark.end_to_end
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="workers are found in /proc")
def test_studies_of_killed_workers_are_scored_by_others(
    tmp_path: Path, scans: Scans, trained: Path, start_aeflow: Start
) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    command = ["predict", str(scans.listed), "-m", str(trained), *OUTPUTS]
    home = str(tmp_path / "home")
    process: subprocess.Popen[str] = start_aeflow(
        [*command, "-o", tmp_path / "RAY", "--ray", "local", "--workers", "2"], AEFLOW_HOME=home
    )
    try:
        wait_until_done(tmp_path / "RAY", 1, process)
        workers = workers_of(home)  # of whom one at least has studies left
        assert workers
        for worker in workers:
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

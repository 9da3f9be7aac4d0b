"""The examples for Slurm and Kubernetes, as far as a shell can run them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from archive_runs import Scans

from aeflow_monai.archive import Shard, merge

EXAMPLES = Path(__file__).parent.parent.parent / "docs/examples"
MASKS = ("--outputs", "anomaly_mask", "--device", "cpu")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What a job sees, with `aeflow` on its path."""
    command = tmp_path / "bin/aeflow"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m aeflow_monai.cli.main "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}


@pytest.fixture
def listed(tmp_path: Path, scans: Scans) -> Path:
    """One study, of which it is known to which of two shards it belongs."""
    path = tmp_path / "list.txt"
    path.write_text(f"{scans.folder}/scan00.nii.gz\n")
    return path


def shard_of(listed: Path) -> int:
    return next(number for number in (1, 2) if Shard(number, 2).holds(listed.read_text().strip()))


@pytest.mark.end_to_end
def test_the_slurm_array(tmp_path: Path, listed: Path, trained: Path, environment: dict[str, str]) -> None:
    own = shard_of(listed)
    task = {"SLURM_ARRAY_TASK_ID": str(own - 1), "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"}
    command = ["bash", EXAMPLES / "slurm_array.sh", listed, trained, tmp_path / "OUT", *MASKS]
    done = subprocess.run(command, env={**environment, **task}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"shard {own}/2: 1 of 1 studies done, 0 failed" in done.stdout
    merged = merge(tmp_path / "OUT")
    assert merged.counts.done == 1
    assert merged.missing == (3 - own,)


@pytest.mark.end_to_end
def test_the_kubernetes_job(tmp_path: Path, listed: Path, trained: Path, environment: dict[str, str]) -> None:
    job: dict[str, Any] = yaml.safe_load((EXAMPLES / "kubernetes_job.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = {each["name"]: each["value"] for each in container["env"]}
    assert job["spec"]["completionMode"] == "Indexed"
    assert given["N"] == str(job["spec"]["completions"])
    own = shard_of(listed)
    given |= {"LIST": str(listed), "MODEL": str(trained), "OUT": str(tmp_path / "OUT"), "N": "2"}
    done = subprocess.run(
        [*container["command"], *container["args"]],
        env={**environment, **given, "JOB_COMPLETION_INDEX": str(own - 1)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"shard {own}/2: 1 of 1 studies done, 0 failed" in done.stdout

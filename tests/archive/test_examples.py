"""The examples for Slurm and Kubernetes, as far as a shell can run them."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from archive_runs import Scans
from pasted import paste

from aeflow_monai.archive import Shard, merge
from aeflow_monai.cli.main import main

# what `monai.bundle run` says of every config
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
EXAMPLES = Path(__file__).parent.parent.parent / "docs/examples"
MASKS = ("--outputs", "anomaly_mask", "--device", "cpu")


@pytest.fixture
def listed(tmp_path: Path, scans: Scans) -> Path:
    """One study, of which it is known to which of two shards it belongs."""
    path = tmp_path / "list.txt"
    path.write_text(f"{scans.folder}/scan00.nii.gz\n")
    return path


def shard_of(listed: Path) -> int:
    return next(number for number in (1, 2) if Shard(number, 2).holds(listed.read_text().strip()))


@pytest.mark.end_to_end
def test_the_slurm_array(tmp_path: Path, listed: Path, trained: Path) -> None:
    own = shard_of(listed)
    task = {"SLURM_ARRAY_TASK_ID": str(own - 1), "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"}
    command = ["bash", EXAMPLES / "slurm_array.sh", listed, trained, tmp_path / "OUT", *MASKS]
    printed = paste(shlex.join(map(str, command)), tmp_path, {"aeflow": main}, **task)
    assert f"shard {own}/2: 1 of 1 studies done, 0 failed" in printed
    merged = merge(tmp_path / "OUT")
    assert merged.counts.done == 1
    assert merged.missing == (3 - own,)


@pytest.mark.end_to_end
def test_the_kubernetes_job(tmp_path: Path, listed: Path, trained: Path) -> None:
    job: dict[str, Any] = yaml.safe_load((EXAMPLES / "kubernetes_job.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = {each["name"]: each["value"] for each in container["env"]}
    assert job["spec"]["completionMode"] == "Indexed"
    assert given["N"] == str(job["spec"]["completions"])
    own = shard_of(listed)
    given |= {"LIST": str(listed), "MODEL": str(trained), "OUT": str(tmp_path / "OUT"), "N": "2"}
    command = shlex.join([*container["command"], *container["args"]])
    printed = paste(command, tmp_path, {"aeflow": main}, **given, JOB_COMPLETION_INDEX=str(own - 1))
    assert f"shard {own}/2: 1 of 1 studies done, 0 failed" in printed

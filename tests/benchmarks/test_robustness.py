"""A seeded sample of benchmarks/robustness: damaged files, and runs that are killed."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROBUSTNESS = Path(__file__).parent.parent.parent / "benchmarks" / "robustness"


def rows_of(script: str, output: Path, n: int) -> list[dict[str, str]]:
    """What a sample of n writes, one row for each."""
    command = [sys.executable, str(ROBUSTNESS / f"{script}.py"), "--output", str(output), "--n", str(n), "--seed", "1"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500, check=False
    )
    table = output / f"{script}.csv"
    assert table.exists(), done.stderr
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == n, done.stderr
    return rows


def test_damaged_files_are_read_as_they_were_or_named(tmp_path: Path) -> None:
    rows = rows_of("mutants", tmp_path, 90)
    assert len({row["format"] for row in rows}) == 30
    assert [row for row in rows if row["outcome"] not in ("as before", "another content", "named error")] == []


@pytest.mark.end_to_end
def test_killed_runs_recover_with_the_same_results(tmp_path: Path) -> None:
    rows = rows_of("kills", tmp_path, 4)
    assert {row["phase"] for row in rows} == {"cache", "training", "calibration at its end", "evaluation"}
    assert [row for row in rows if row["outcome"] != "recovered"] == []

"""Ledgers of several shards as one."""

import shutil
from pathlib import Path

import pytest
from archive_runs import a_shard

from aeflow_monai.archive.merged import merge
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.files import read_json, write_json


def test_cases_of_two_shards_with_one_name_are_told(tmp_path: Path) -> None:
    a_shard(tmp_path, 1, "Sub_a", "b", "É")
    a_shard(tmp_path, 2, "sub_A", "c", "é")
    merged = merge(tmp_path)
    assert merged.same_names == {"sub_a"}
    assert tuple(merged.counts) == (2, 0, 4)


def test_a_copy_of_a_shard_is_told(tmp_path: Path) -> None:
    a_shard(tmp_path, 1, "a")
    shutil.copytree(tmp_path / "shards/1-of-2", tmp_path / "shards/1-of-2.bak")
    with pytest.raises(ValueError, match=r"1-of-2 and .*1-of-2\.bak are both shard 1 of 2: one is a copy"):
        merge(tmp_path)


def test_results_of_a_run_without_a_ledger_are_not_written_over(tmp_path: Path) -> None:
    a_shard(tmp_path, 1, "a")
    merge(tmp_path)
    merge(tmp_path)  # over its own
    write_json(tmp_path / "run.json", {"config_sha256": "0"})
    with pytest.raises(ValueError, match=r"holds the results of a run that kept no ledger beside those of shards"):
        merge(tmp_path)
    assert read_json(tmp_path / "run.json") == {"config_sha256": "0"}


def test_a_list_that_grew_is_told(tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    source.write_text("1/a.png\n")
    a_shard(tmp_path, 1, "a", source=str(source), list_sha256=sha256_of(source))
    merge(tmp_path)
    source.write_text("1/a.png\n1/b.png\n")
    with pytest.raises(ValueError, match=r"list\.txt has changed since its shards were scored, so that studies may be"):
        merge(tmp_path)
    a_shard(tmp_path, 2, "b", source=str(source), list_sha256=sha256_of(source))
    with pytest.raises(ValueError, match=r"has changed between .*1-of-2 and .*2-of-2"):
        merge(tmp_path)
    source.unlink()
    with pytest.raises(ValueError, match="has changed between"):
        merge(tmp_path)

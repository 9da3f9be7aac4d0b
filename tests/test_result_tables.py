"""Tables of results: what they keep, and what no spreadsheet runs."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from aeflow_monai.result_tables import Table, spreadsheet_safe


def test_table_keeps_every_digit_and_every_row_before_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.csv"
    table = Table(path, ["case", "score", "label"])
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [
        ("scores.unfinished.csv", "case,score,label\n")
    ]
    values = [1 / 3, np.float64(0.1) + 0.2, np.float32(0.1), torch.tensor(1e-30, dtype=torch.float64)]
    for value in values:
        table.append({"label": 1, "case": 'a,"b"', "score": value})
    for row in ({"case": "a", "score": 1.0}, {"case": "a", "score": 1.0, "label": 0, "extra": 2}):
        with pytest.raises(ValueError, match=r"missing (\['label'\], unknown \[\]|\[\], unknown \['extra'\])"):
            table.append(row)
    table.finish()
    assert [file.name for file in path.parent.iterdir()] == ["scores.csv"]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [float(value) for value in values]
    assert {(row["case"], row["label"]) for row in rows} == {('a,"b"', "1")}


def test_table_replaces_an_earlier_one(tmp_path: Path) -> None:
    for columns in (["case"], ["case", "score"]):
        table = Table(tmp_path / "scores.csv", columns)
        table.finish()
    assert (tmp_path / "scores.csv").read_text() == "case,score\n"


@pytest.mark.parametrize("columns", [[], ["a", "a"]])
def test_table_needs_different_columns(tmp_path: Path, columns: list[str]) -> None:
    with pytest.raises(ValueError, match="columns have to be one or more different names"):
        Table(tmp_path / "scores.csv", columns)


def test_a_full_disk_is_told_with_the_table(tmp_path: Path) -> None:
    table = Table(tmp_path / "scores.csv", ["case"])
    table.unfinished.unlink()
    table.unfinished.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*scores\.unfinished\.csv"):
        table.append({"case": "a"})


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "'=1", "=cmd|' /C calc'!A0", "-.nii.gz"]
)
def test_a_cell_that_a_spreadsheet_would_run_is_written_as_text(text: str) -> None:
    assert spreadsheet_safe(text) == f"'{text}"


@pytest.mark.parametrize("cell", ["sub-01", "a=b", "", "'quoted'", " =1", -1.5, -1, float("-inf"), None, True])
def test_every_other_cell_stays_as_it_is(cell: object) -> None:
    assert spreadsheet_safe(cell) is cell

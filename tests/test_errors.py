import csv
import logging
from pathlib import Path

import pytest

from aeflow_monai.errors import CaseFailures, FailureLog

DATA = [{"case": name, "image": f"{name}.nii.gz"} for name in "abcde"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_nothing_is_written_where_nothing_failed(tmp_path: Path) -> None:
    failures = FailureLog(tmp_path / "failures.csv")
    failures.start()
    with failures.catching(DATA[0], "read"):
        pass
    failures.raise_if_any(1)
    assert not list(tmp_path.iterdir())
    assert len(failures) == 0


def test_each_failure_is_written_and_logged_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog(tmp_path / "deep/failures.csv")
    for number, item in enumerate(DATA[:2], start=1):
        with caplog.at_level(logging.WARNING), failures.catching(item, "read"):
            raise ValueError("Two\n  lines, and a comma.")
        assert len(rows(failures.path)) == len(failures) == number
    assert rows(failures.path)[1] == {
        "case": "b",
        "file": "b.nii.gz",
        "stage": "read",
        "message": "Two lines, and a comma.",
    }
    assert caplog.messages == [f"Case {name} failed, the others go on: Two" for name in "ab"]
    failures.start()
    assert not failures.path.exists()
    assert len(failures) == 0


def test_what_the_user_stops_is_no_failure_of_a_case(tmp_path: Path) -> None:
    failures = FailureLog(tmp_path / "failures.csv")
    with pytest.raises(KeyboardInterrupt), failures.catching(DATA[0], "read"):
        raise KeyboardInterrupt
    assert len(failures) == 0


def test_without_a_table_there_is_the_summary_only() -> None:
    failures = FailureLog(None)
    failures.start()
    with failures.catching(DATA[0], "read"):
        raise ValueError("wrong")
    with pytest.raises(CaseFailures, match=r"^1 of 2 cases failed:\n- a \(a.nii.gz, read\): wrong$"):
        failures.raise_if_any(2)


def test_all_files_of_a_case_are_named(tmp_path: Path) -> None:
    failures = FailureLog(tmp_path / "failures.csv")
    with failures.catching({"case": "a", "image": ["t1.nii", "t2.nii"]}, "read"):
        raise ValueError("wrong")
    assert rows(failures.path)[0]["file"] == "t1.nii, t2.nii"


def test_the_summary_is_short(tmp_path: Path) -> None:
    failures = FailureLog(tmp_path / "failures.csv")
    for number in range(30):
        with failures.catching({"case": f"{number}", "image": f"{number}.png"}, "read"):
            raise ValueError("wrong\nin detail")
    with pytest.raises(CaseFailures) as raised:
        failures.raise_if_any(32)
    lines = str(raised.value).splitlines()
    assert lines[:2] == ["30 of 32 cases failed:", "- 0 (0.png, read): wrong"]
    assert lines[-2] == "- and 10 more"
    assert lines[-1] == f"The outputs of the other 2 are in {tmp_path}. {failures.path} lists all that failed."
    assert len(lines) == 23
    with pytest.raises(CaseFailures, match=r"^All 30 cases failed:\n(.*\n)+.*failures\.csv lists all that failed\.$"):
        failures.raise_if_any(30)

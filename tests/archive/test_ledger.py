"""The ledger of a shard, through ends of processes."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aeflow_monai.archive import Ledger, Study
from aeflow_monai.archive.ledger import Counts

ROW = {"anomaly_score": 0.1 + 0.2}


def studies(*names: str) -> list[Study]:
    return [Study(name, {"image": f"/data/{name}", "case": name}) for name in names]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_what_is_done_is_not_claimed_again(tmp_path: Path, ledger: Ledger) -> None:
    ledger.begin(studies("a", "b", "c", "d"))
    first, second, _ = ledger.claim(3)
    ledger.done(first.number, ROW)
    ledger.failed(second.number, {"stage": "read", "message": "It is empty."})
    ledger.commit()
    with Ledger(tmp_path / "ledger.sqlite") as again:  # as if the process had ended
        again.begin(studies("a", "b", "c", "d"))
        assert [claim.item["case"] for claim in again.claim(9)] == ["c", "d"]
        assert again.counts() == Counts(1, 1, 2)
        again.release()
        again.begin(studies("a", "b", "c", "d"), retry_failed=True)
        assert [claim.item["case"] for claim in again.claim(9)] == ["b", "c", "d"]
        assert [row for _, row in again.rows("done")] == [
            {"case": "a", "file": "/data/a", "anomaly_score": 0.1 + 0.2, "results": "00000"}
        ]


def test_nothing_is_finished_twice(ledger: Ledger) -> None:
    ledger.begin(studies("a"))
    (claim,) = ledger.claim(1)
    ledger.done(claim.number, ROW)
    with pytest.raises(RuntimeError, match="was finished by another process meanwhile"):
        ledger.done(claim.number, ROW)


def test_a_study_that_ends_processes_is_scored_alone_and_given_up(ledger: Ledger) -> None:
    listed = studies("a", "deadly", "c")
    claimed = []
    for _ in range(5):  # processes, each of which ends with the study
        ledger.begin(listed)
        while claims := ledger.claim(9):
            claimed.append([claim.item["case"] for claim in claims])
            if "deadly" in claimed[-1]:
                break
            ledger.done(claims[0].number, ROW)
    assert claimed == [["a", "deadly", "c"], ["a", "deadly", "c"], ["a"], ["deadly"], ["deadly"], ["deadly"]]
    ledger.begin(listed)
    ((_, row),) = ledger.rows("failed")
    assert row["message"].startswith("The process ended 5 times while this study was scored")
    assert [claim.item["case"] for claim in ledger.claim(9)] == ["c"]


def test_what_is_broken_off_by_no_fault_of_its_own_is_just_open(ledger: Ledger) -> None:
    for _ in range(9):
        ledger.begin(studies("a", "b"))
        assert len(ledger.claim(9)) == 2
        ledger.release()
    assert ledger.counts() == Counts(0, 0, 2)


def test_lines_that_repeat_come_and_go(ledger: Ledger) -> None:
    assert ledger.begin(studies("a", "b", "a", "a")) == 2
    first, _ = ledger.claim(9)
    ledger.done(first.number, ROW)
    assert ledger.begin(studies("c")) == 0  # a is done and kept, b is gone
    assert ledger.counts() == Counts(1, 0, 1)
    assert ledger.unlisted() == 1


def test_two_studies_of_one_name_have_their_own_files(ledger: Ledger) -> None:
    ledger.begin([Study("a/b_c", {"image": "/1", "case": "x"}), Study("a_b/c", {"image": "/2", "case": "X"})])
    names = [claim.item["case"] for claim in ledger.claim(9)]
    assert names[0] == "x"
    assert names[1].startswith("X-")


def test_a_study_that_is_called_as_another_would_be_has_its_own_files(ledger: Ledger) -> None:
    tail = hashlib.sha256(b"c").hexdigest()[:8]
    cases = {"a": "x", "b": f"x-{tail}", "c": "x"}
    ledger.begin([Study(key, {"image": f"/{key}", "case": case}) for key, case in cases.items()])
    assert len({claim.item["case"] for claim in ledger.claim(9)}) == 3


def test_a_reader_disturbs_no_writer(tmp_path: Path, ledger: Ledger) -> None:
    ledger.begin(studies("a", "b"))
    for claim in ledger.claim(9):
        ledger.done(claim.number, ROW)
        with Ledger(tmp_path / "ledger.sqlite", read_only=True) as reader:
            assert reader.counts().done + reader.counts().open == 2
    with pytest.raises(FileNotFoundError, match="There is no ledger"):
        Ledger(tmp_path / "absent.sqlite", read_only=True)


def test_what_a_process_left_that_was_killed_amid_writing_can_be_read(tmp_path: Path, ledger: Ledger) -> None:
    ledger.begin(studies("a", "b"))
    first, second = ledger.claim(9)
    ledger.done(first.number, ROW)
    ledger.commit()
    ledger.done(second.number, ROW)
    left = tmp_path / "left"  # files as a killed process leaves them: no one holds a lock
    left.mkdir()
    for path in tmp_path.glob("ledger.sqlite*"):
        shutil.copy(path, left)
    with Ledger(left / "ledger.sqlite", read_only=True) as reader:
        assert reader.counts() == Counts(1, 0, 1)
    with Ledger(left / "ledger.sqlite") as writer:
        assert writer.counts() == Counts(1, 0, 1)

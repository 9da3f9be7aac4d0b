"""Ledgers that cannot be read or written, told by name."""

import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from archive_runs import a_shard
from forked import ForkServer

from aeflow_monai.archive import Ledger, Study
from aeflow_monai.archive.ledger import LEDGER, Counts
from aeflow_monai.archive.ledger_file import DamagedLedger, LedgerError, LedgerFile
from aeflow_monai.cli.main import main

MANY = [Study(f"{number:04d}", {"image": f"/{number}", "case": f"{number:04d}"}) for number in range(300)]


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """A limit that SQLite meets as it meets a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of many studies, of which one is done."""
    path = tmp_path / LEDGER
    with Ledger(path) as ledger:
        ledger.begin(MANY)
        (claim,) = ledger.claim(1)
        ledger.done(claim.number, {"anomaly_score": 0.5})
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_full_disk_is_told_and_what_is_stored_stays(path: Path) -> None:
    def score_all(ledger: Ledger) -> None:
        while claims := ledger.claim(4):
            for claim in claims:
                ledger.done(claim.number, {"anomaly_score": 0.5, "file": "x" * 1000})
            ledger.commit()

    ledger = Ledger(path)
    with files_of_at_most(path.stat().st_size + 40_000):
        with pytest.raises(LedgerError) as raised:
            score_all(ledger)
        message = (
            rf"The ledger {re.escape(str(path))} cannot be used: (disk I/O error|database or disk is full)\. Free "
        )
        assert re.match(message, str(raised.value))
        ledger.release()  # studies that were claimed are given back while the disk is full
        ledger.close()
    with Ledger(path) as again:
        done, _, n_open = again.counts()
        assert 1 < done < len(MANY)
        again.begin(MANY)
        assert len(again.claim(len(MANY))) == n_open == len(MANY) - done  # no study is suspected
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute("SELECT sum(ends) FROM studies").fetchone() == (0,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def write_text(path: Path) -> None:
    path.write_text("path\na.png\n" * 100, encoding="utf-8")


def of_another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE cookies (name TEXT)")


def of_other_columns(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("ALTER TABLE studies RENAME COLUMN key TO path")


def cut(path: Path, n_bytes: int) -> None:
    os.truncate(path, path.stat().st_size - n_bytes)


def cut_in_the_middle(path: Path) -> None:
    cut(path, path.stat().st_size // 2)


def cut_within_the_last_page(path: Path) -> None:
    cut(path, 100)


def cut_to_nothing(path: Path) -> None:
    (path.parent / "00000").mkdir()
    path.write_bytes(b"")


def no_json(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE settings SET value = '[1,'")
        database.execute("UPDATE studies SET item = '{'")


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (write_text, "what SQLite cannot read: file is not a database"),
        (of_another_program, "an SQLite file with the table cookies"),
        (of_other_columns, "what SQLite cannot read: no such column: key"),
        (cut_in_the_middle, "what SQLite cannot read: database disk image is malformed"),
        (no_json, "a cell that says '.*'"),
    ],
)
def test_what_is_no_whole_ledger_is_told(path: Path, damage: Callable[[Path], None], got: str, read_only: bool) -> None:
    damage(path)
    before = path.read_bytes()
    with pytest.raises(DamagedLedger) as raised, Ledger(path, read_only) as ledger:
        [*ledger.rows("done")]
    said = str(raised.value).removeprefix(f"Expected the ledger of a shard in {path}; ")
    assert re.fullmatch(rf"got {got}\. Put the right file back, or begin this shard anew with --overwrite True\.", said)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "got"),
    [(cut_within_the_last_page, r"\d+ bytes of \d+"), (cut_to_nothing, "an empty file beside results")],
)
def test_a_size_that_may_be_old_is_damage_only_to_who_writes(
    path: Path, damage: Callable[[Path], None], got: str
) -> None:
    damage(path)
    before = path.read_bytes()
    with pytest.raises(DamagedLedger, match=rf"; got {got}\. Put the right file back, or begin this shard anew"):
        Ledger(path)
    with pytest.raises(LedgerError, match=rf"cannot be read: got {got}\. Give the same command again") as raised:
        Ledger(path, read_only=True)
    assert "overwrite" not in str(raised.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
def test_a_larger_file_has_lost_nothing(path: Path, read_only: bool) -> None:
    with path.open("ab") as file:
        file.write(b"\0" * 100)
    with Ledger(path, read_only) as ledger:
        assert ledger.counts() == Counts(1, 0, len(MANY) - 1)


@pytest.mark.parametrize("words", ["interrupted", "locking protocol", "out of memory", "unheard of"])
def test_a_passing_fault_is_no_damage(path: Path, words: str) -> None:
    file = LedgerFile(path)
    with (
        pytest.raises(LedgerError, match=rf"cannot be used: {words}\. Give the same command again") as raised,
        file._told(),
    ):
        raise sqlite3.OperationalError(words)
    assert "overwrite" not in str(raised.value)
    file.close()


def test_a_mistake_of_ours_is_neither_damage_nor_a_fault_of_the_disk(path: Path) -> None:
    file = LedgerFile(path)
    with pytest.raises((sqlite3.ProgrammingError, sqlite3.InterfaceError)):
        file.write("UPDATE studies SET name = ?", ([],))
    file.close()
    with pytest.raises(sqlite3.ProgrammingError, match="Cannot operate on a closed database"):
        file.write("SELECT 1")


def are_open(folder: Path) -> list[str]:
    """Files below a folder that this process has open."""
    found = []
    for number in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing
            found.append(str(number.readlink()))
    return [name for name in found if name.startswith(str(folder))]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("damage", [write_text, of_another_program, cut_in_the_middle, cut_within_the_last_page])
def test_a_ledger_that_is_refused_is_closed(path: Path, damage: Callable[[Path], None], read_only: bool) -> None:
    damage(path)
    with pytest.raises((DamagedLedger, LedgerError)):
        LedgerFile(path, read_only)
    assert not are_open(path.parent)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_a_shard_that_is_refused_is_closed_without_half_of_its_list(tmp_path: Path, trained: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("path,case\na.png,a\n,b\n", encoding="utf-8")
    out = tmp_path / "OUT"
    command = ["predict", str(listed), "-m", str(trained), "-o", str(out), "--resume", "--device", "cpu", "--quiet"]
    assert main(command) == 2
    assert not are_open(out)
    with Ledger(out / "shards/1-of-1" / LEDGER, read_only=True) as ledger:
        assert ledger.counts() == Counts(0, 0, 0)


def test_a_ledger_that_another_program_holds_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aeflow_monai.archive.ledger_file._WAIT", 0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for read_only in (True, False):
        with pytest.raises(LedgerError, match=r"cannot be used: database is locked\. Another program has it open"):
            Ledger(path, read_only)
    other.close()
    with Ledger(path) as ledger:
        assert ledger.counts() == Counts(1, 0, len(MANY) - 1)


AS_NOBODY = """
import os, sys
from aeflow_monai.archive import Ledger, Study
os.setuid(65534)
with Ledger(sys.argv[1]) as ledger:
    ledger.begin([])
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes another user")
def test_a_ledger_of_another_user_is_told(fork_server: ForkServer) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:  # which others may enter, unlike pytest's
        Path(folder).chmod(0o777)
        path = Path(folder, LEDGER)
        with Ledger(path) as ledger:
            ledger.begin(MANY)
        path.chmod(0o444)
        done = fork_server.run(["-c", AS_NOBODY, str(path)], Path(folder), os.environ)
    assert f"The ledger {path} cannot be used: attempt to write a readonly database. Let this user write" in done.stderr


def test_a_report_of_a_damaged_ledger_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        a_shard(tmp_path, number, "a", "b")
    cut_in_the_middle(tmp_path / "shards/2-of-2" / LEDGER)
    assert main(["report", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(f"error: Expected the ledger of a shard in {tmp_path}/shards/2-of-2/{LEDGER}; got ")
    assert said.endswith("Put the right file back, or begin this shard anew with --overwrite.")


# aeflow with a limit on the size of files, which the system treats as it treats a full disk
LIMITED = """
import resource, sys
from aeflow_monai.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_prediction_onto_a_full_disk_goes_on_when_there_is_room(
    tmp_path: Path, trained: Path, fork_server: ForkServer
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"absent{number:04d}.png\n" for number in range(400)), encoding="utf-8")
    out = tmp_path / "OUT"
    command = ["predict", str(listed), "-m", str(trained), "-o", str(out), "--resume", "--device", "cpu", "--quiet"]
    stopped = fork_server.run(["-c", LIMITED, "180000", *command], tmp_path, os.environ)
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith(f"error: The ledger {out}/shards/1-of-1/{LEDGER} cannot be used: ")
    assert last.endswith("give the same command again: what is done is not done again.")
    gone_on = fork_server.run(["-c", LIMITED, "100000000", *command], tmp_path, os.environ)
    assert "400 studies: 0 done, 400 failed, 0 open" in gone_on.stdout

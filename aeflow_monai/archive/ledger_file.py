"""The SQLite file of a ledger; errors name the file and the remedy."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

__all__ = ["DamagedLedger", "LedgerError", "LedgerFile"]

_WAIT = 60  # seconds to wait for another writing process
_TABLES = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    run INTEGER PRIMARY KEY, started TEXT NOT NULL, process INTEGER NOT NULL, machine TEXT NOT NULL, ended TEXT
);
CREATE TABLE IF NOT EXISTS studies (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE COLLATE NOCASE, item TEXT NOT NULL,
    seen INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'open', ends INTEGER NOT NULL DEFAULT 0, run INTEGER, result TEXT
);
CREATE INDEX IF NOT EXISTS unfinished ON studies (state, ends, number) WHERE state != 'done';
"""
_OWN = {"settings", "runs", "studies"}
# By words of SQLite's messages, since Python 3.10 does not expose its error codes.
_REMEDIES = {
    "locked": "Another program has it open: end that",
    "full": "Free space on its disk",
    "I/O": "Free space on its disk, or look after the disk",
    "readonly": "Let this user write to the file and its folder",
    "unable to open": "Let this user write to the file and its folder",
}
_DAMAGE = (
    "malformed",
    "not a database",
    "unsupported file format",
    "no such table",
    "no such column",
    "no column named",
)


class LedgerError(RuntimeError):
    """A ledger cannot be read or written at present; its contents are kept."""


class DamagedLedger(ValueError):
    """A file is not a ledger, or is damaged."""


class LedgerFile:
    r"""The SQLite file of a ledger, with its tables created if it is to be written.

    It uses no write-ahead log, which SQLite cannot share between machines.

    Args:
        path: path of the file.
        read_only: whether it is only read; then it has to exist.

    Raises:
        LedgerError: the disk is full, another program holds the file, it cannot be written, or SQLite fails for
            another reason; or a file that is only read seems truncated. All methods may raise it.
        DamagedLedger: it is not a ledger, or was truncated. All methods may raise it.

    Example:
        >>> file = LedgerFile(Path(tempfile.mkdtemp(), "ledger.sqlite"))
        >>> _ = file.write("INSERT INTO settings VALUES ('source', '\"list.txt\"')")
        >>> list(file.read("SELECT name FROM settings"))
        [('source',)]
        >>> file.close()
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        if path.is_file() and not path.stat().st_size and any(path.parent.glob("[0-9]*")):
            raise self._cut("an empty file beside results")  # a ledger that has just been created has no results
        with self._told(), ExitStack() as opened:
            self._db = opened.enter_context(closing(_readable(path) if read_only else _opened(path, "rwc")))
            self._require_own()
            if not read_only:
                # the journal keeps its disk space, so that studies can be released when the disk is full
                self._db.execute("PRAGMA journal_mode = PERSIST")
                self._db.executescript(_TABLES)
            opened.pop_all()  # keep it open

    def begin(self) -> None:
        """Begin a transaction, unless one is open."""
        if not self._db.in_transaction:
            self.write("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Commit pending changes."""
        if self._db.in_transaction:
            self.write("COMMIT")

    def write(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a query that returns no rows.

        Raises:
            sqlite3.IntegrityError: a row with this value exists.
        """
        with self._told():
            return self._db.execute(query, values)

    def write_each(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a query that returns no rows, once for each tuple of values."""
        with self._told():
            self._db.executemany(query, rows)

    def read(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query."""
        with self._told():
            yield from self._db.execute(query, values)

    def content(self, text: str) -> Any:
        """Parse the JSON in a cell."""
        try:
            return json.loads(text)
        except (TypeError, ValueError) as error:
            raise self._damaged(f"a cell that says {text!r:.80}") from error

    def close(self) -> None:
        """Commit pending changes, and close the file."""
        try:
            self.commit()
        finally:
            self._db.close()

    def abandon(self) -> None:
        """Discard pending changes, and close the file."""
        self._db.close()

    def _require_own(self) -> None:
        """Refuse a file of another program, before anything is written to it, and a truncated one."""
        self._db.execute("BEGIN")
        names = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        # no other process writes during this transaction
        in_file = self._db.execute("PRAGMA database_list").fetchone()[2]
        (n_pages,), (size,) = (self._db.execute(f"PRAGMA page_{name}").fetchone() for name in ("count", "size"))
        n_bytes = Path(in_file).stat().st_size if in_file else n_pages * size
        self._db.execute("COMMIT")
        if others := sorted(names - _OWN):
            raise self._damaged(f"an SQLite file with the table {others[0]}")
        if n_bytes < n_pages * size:
            raise self._cut(f"{n_bytes} bytes of {n_pages * size}")

    def _cut(self, got: str) -> LedgerError | DamagedLedger:
        if not self._read_only:
            return self._damaged(got)
        # over NFS the reported size of a file written by another machine may be seconds old
        return LedgerError(
            f"The ledger {self.path} cannot be read: got {got}. Give the same command again, since another machine may "
            "be writing it. If it says the same then, the file was cut: put the right one back."
        )

    def _damaged(self, got: object) -> DamagedLedger:
        return DamagedLedger(
            f"Expected the ledger of a shard in {self.path}; got {got}. Put the right file back, or begin this shard "
            "anew with --overwrite True."
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
            raise  # another row has this value; or a bug
        except sqlite3.Error as error:
            said = str(error).removesuffix(".")
            if any(words in said for words in _DAMAGE):
                raise self._damaged(f"what SQLite cannot read: {said}") from error
            remedy = next((f"{remedy}, and give" for words, remedy in _REMEDIES.items() if words in said), "Give")
            raise LedgerError(
                f"The ledger {self.path} cannot be used: {said}. {remedy} the same command again: what is done is not "
                "done again."
            ) from error


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_WAIT, isolation_level=None, check_same_thread=False)


def _readable(path: Path) -> sqlite3.Connection:
    """Open a ledger for reading; after a process was killed while writing, a copy with its changes rolled back."""
    with ExitStack() as opened:
        ledger = opened.enter_context(closing(_opened(path, "ro")))
        try:
            ledger.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
        else:
            opened.pop_all()
            return ledger
    # rolling back the journal in place is left to the next writer
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        for name in (path.name, f"{path.name}-journal"):
            shutil.copy(path.with_name(name), folder)
        copied = opened.enter_context(
            closing(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False))
        )
        with closing(_opened(Path(folder, path.name), "rw")) as whole:
            whole.backup(copied)
        opened.pop_all()
    return copied

"""The ledger of a shard: the state of its studies (open, done or failed), safe against a killed process."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from aeflow_monai.archive.ledger_file import LedgerFile
from aeflow_monai.archive.study import Study
from aeflow_monai.data.datalist.naming import fitting_name

__all__ = ["LEDGER", "Claim", "Counts", "Ledger"]

LEDGER = "ledger.sqlite"
_EVERY = 1.0  # seconds between commits, each of which waits about 10 ms for the disk
_SUSPECT, _MOST = 2, 5  # killed processes until a study is scored alone, and until it is given up
_FOLDER = 1000  # studies in a folder of outputs


class Claim(NamedTuple):
    """A study claimed for scoring.

    Attributes:
        number: number of the study in its ledger.
        folder: folder of its files, a name below the shard's folder.
        item: item of a datalist.
    """

    number: int
    folder: str
    item: dict[str, Any]


class Counts(NamedTuple):
    """Numbers of done, failed and open studies of a ledger; open includes studies that are being scored."""

    done: int
    failed: int
    open: int


class Ledger:
    """The state and result of each study of a shard, in an SQLite file.

    A study is open until it is claimed. A claimed study becomes done when all of its files have their final names and
    its row is stored, or failed, with a message. Claims of a process that was killed are open for the next one. A study
    that was claimed each time a process was killed is suspected as the cause: it is scored alone, and given up after
    five times.

    One process writes a ledger; others may read it meanwhile. Rows are committed together once a second, so that a slow
    disk does not slow down the scoring.

    Args:
        path: path of the file; created if missing.
        read_only: whether it is only read; then it has to exist.

    Raises:
        FileNotFoundError: the file to be read does not exist.
        LedgerError: it cannot be used at present, for example with a full disk, or while another program holds it. All
            methods may raise it.
        DamagedLedger: the file is not a ledger, or is damaged. All methods may raise it.

    Example:
        >>> import tempfile
        >>> with Ledger(Path(tempfile.mkdtemp(), LEDGER)) as ledger:
        ...     _ = ledger.begin([Study("a.png", {"image": "a.png", "case": "a"})])
        ...     (claim,) = ledger.claim(16)
        ...     ledger.done(claim.number, {"anomaly_score": 0.5})
        ...     ledger.counts()
        Counts(done=1, failed=0, open=0)
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self.path = Path(path)
        if read_only and not self.path.is_file():
            raise FileNotFoundError(f"There is no ledger {self.path}. Begin it with aeflow predict --shard K/N.")
        self._run = 0
        self._committed = time.monotonic()
        self._file = LedgerFile(self.path, read_only)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit pending changes, and close the file."""
        self._file.close()

    def abandon(self) -> None:
        """Discard pending changes, and close the file."""
        self._file.abandon()

    @property
    def is_begun(self) -> bool:
        """Whether the tables exist, which a new ledger gets after a moment."""
        return any(self._file.read("SELECT 1 FROM sqlite_master WHERE name = 'unfinished'"))

    def settings(self) -> dict[str, Any]:
        """Return the settings that the shard was begun with; empty for a new one."""
        return {name: self._file.content(value) for name, value in self._file.read("SELECT name, value FROM settings")}

    def set(self, **settings: Any) -> None:
        """Store settings, which JSON has to hold."""
        rows = [(name, json.dumps(value)) for name, value in settings.items()]
        self._file.write_each("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)

    def begin(self, studies: Iterable[Study] | None, retry_failed: bool = False) -> int:
        """Begin a run of the shard: read the list, and reopen what an earlier run has not finished.

        Studies that are neither done nor listed any more are removed.

        Args:
            studies: studies of the shard, in any order; None for those of the last run.
            retry_failed: also reopen failed studies.

        Returns:
            The number of listed studies that repeat an earlier one.
        """
        self._file.begin()
        values = (datetime.now().astimezone().isoformat(timespec="seconds"), os.getpid(), platform.node())
        cursor = self._file.write("INSERT INTO runs (started, process, machine) VALUES (?, ?, ?)", values)
        self._run = int(cursor.lastrowid or 0)
        repeated = 0
        if studies is not None:
            repeated = sum(not self._list(study) for study in studies)
            self._file.write("DELETE FROM studies WHERE state != 'done' AND seen < ?", (self._run,))
        if retry_failed:
            self._file.write("UPDATE studies SET state = 'open', ends = 0, result = NULL WHERE state = 'failed'")
        self._open_again("state = 'claimed'")
        self.commit()
        return repeated

    def claim(self, limit: int) -> list[Claim]:
        """Claim open studies, in their order.

        Args:
            limit: most studies to claim.

        Returns:
            The studies; a single one if it is suspected of killing processes; none if no study is open.
        """
        chosen = "SELECT number, name, item FROM studies WHERE state = 'open' AND ends {} ORDER BY number LIMIT ?"
        rows = [*self._file.read(chosen.format(f"< {_SUSPECT}"), (limit,))]
        rows = rows or [*self._file.read(chosen.format(f">= {_SUSPECT}"), (1,))]
        self._file.begin()
        marked = "UPDATE studies SET state = 'claimed' WHERE number = ?"
        self._file.write_each(marked, [(number,) for number, _, _ in rows])
        self.commit()
        return [
            Claim(number, f"{number // _FOLDER:05d}", {**self._file.content(item), "case": name})
            for number, name, item in rows
        ]

    def done(self, number: int, row: Mapping[str, Any]) -> None:
        """Mark a study as done: all of its files have their final names.

        Args:
            number: number of a claimed study.
            row: row of the table of scores.
        """
        self._finish(number, "done", row)

    def failed(self, number: int, failure: Mapping[str, Any]) -> None:
        """Mark a study as failed.

        Args:
            number: number of a claimed study.
            failure: row of the table of failures.
        """
        self._finish(number, "failed", failure)

    def release(self, numbers: Iterable[int] | None = None) -> None:
        """Reopen claimed studies that were not begun, or interrupted through no fault of their own.

        Args:
            numbers: numbers of studies; all claimed ones if None.
        """
        self._file.begin()
        if numbers is None:
            self._file.write("UPDATE studies SET state = 'open' WHERE state = 'claimed'")
        else:
            opened = "UPDATE studies SET state = 'open' WHERE state = 'claimed' AND number = ?"
            self._file.write_each(opened, [(number,) for number in numbers])
        self.commit()

    def ended(self, numbers: Iterable[int]) -> None:
        """Reopen studies that were claimed by a killed process.

        Args:
            numbers: numbers of the studies.
        """
        self._file.begin()
        self._open_again(f"state = 'claimed' AND number IN ({', '.join(str(int(number)) for number in numbers)})")
        self.commit()

    def end(self) -> None:
        """Mark the run as completed."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._file.begin()
        self._file.write("UPDATE runs SET ended = ? WHERE run = ?", (now, self._run))
        self.commit()

    def commit(self) -> None:
        """Commit pending changes."""
        self._file.commit()
        self._committed = time.monotonic()

    def counts(self) -> Counts:
        """Return the number of studies in each state."""
        found: dict[str, int] = dict(self._file.read("SELECT state, count(*) FROM studies GROUP BY state"))
        return Counts(found.get("done", 0), found.get("failed", 0), found.get("open", 0) + found.get("claimed", 0))

    def unlisted(self) -> int:
        """Return the number of done studies that were no longer listed when the list was last read."""
        query = "SELECT count(*) FROM studies WHERE seen < (SELECT max(seen) FROM studies)"
        ((n_unlisted,),) = self._file.read(query)
        return int(n_unlisted)

    def rows(self, state: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the done or failed studies in the order of their keys.

        Args:
            state: "done" or "failed".

        Yields:
            The key, and the row of scores or of failures.
        """
        query = "SELECT key, number, name, item, result FROM studies WHERE state = ? ORDER BY key"
        for key, number, name, item, result in self._file.read(query, (state,)):
            image = self._file.content(item)["image"]
            file = image if isinstance(image, str) else ", ".join(image)
            yield key, {"case": name, "file": file, **self._file.content(result), "results": f"{number // _FOLDER:05d}"}

    def names(self) -> Iterator[str]:
        """Yield the names of all studies, sorted with the case of ASCII letters ignored."""
        for (name,) in self._file.read("SELECT name FROM studies ORDER BY name COLLATE NOCASE"):
            yield name

    def _list(self, study: Study) -> bool:
        """Add a listed study; return False if it was listed before."""
        query = (
            "INSERT INTO studies (key, name, item, seen) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET item = excluded.item, seen = excluded.seen WHERE seen < excluded.seen"
        )
        item, name = json.dumps(study.item), study.item["case"]
        digest = hashlib.sha256(study.key.encode("utf-8", "surrogateescape")).hexdigest()
        for own in (name, fitting_name(f"{name}-{digest[:8]}")):
            with suppress(sqlite3.IntegrityError):  # another study has this name already
                return bool(self._file.write(query, (study.key, own, item, self._run)).rowcount)
        return bool(self._file.write(query, (study.key, fitting_name(f"{name}-{digest}"), item, self._run)).rowcount)

    def _open_again(self, which: str) -> None:
        """Reopen studies of killed processes; those that were claimed by too many of them become failed."""
        message = (
            f"The process ended {_MOST} times while this study was scored: it may need more memory than there is, or "
            "crash a library. Look at it by itself, or try it again with --retry-failed."
        )
        self._file.write(f"UPDATE studies SET state = 'open', ends = ends + 1 WHERE {which}")
        self._file.write(
            "UPDATE studies SET state = 'failed', result = ?, run = ? WHERE state = 'open' AND ends >= ?",
            (json.dumps({"stage": "score", "message": message}), self._run, _MOST),
        )

    def _finish(self, number: int, state: str, result: Mapping[str, Any]) -> None:
        self._file.begin()
        query = "UPDATE studies SET state = ?, run = ?, result = ? WHERE number = ? AND state = 'claimed'"
        if self._file.write(query, (state, self._run, json.dumps(dict(result)), number)).rowcount != 1:
            raise RuntimeError(
                f"{self.path}: study {number} was finished by another process meanwhile. One process at a time may "
                "work at a shard: end the other."
            )
        if time.monotonic() - self._committed > _EVERY:
            self.commit()

"""Merge the ledgers of all shards into tables, a report, and numbers of done, failed and open studies."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from aeflow_monai.archive.ledger import LEDGER, Counts, Ledger
from aeflow_monai.archive.shard import SAME, SHARDS, Shard, short
from aeflow_monai.archive.study import is_list
from aeflow_monai.errors import Failure
from aeflow_monai.file_digests import digest_of
from aeflow_monai.files import read_json, write_json
from aeflow_monai.output.report import write_report
from aeflow_monai.output.report.overlay_pictures import overlay_pictures
from aeflow_monai.output.report.picture_budget import LIMIT
from aeflow_monai.printable import some
from aeflow_monai.result_files import FAILURES, REPORT, RUN_RECORD, SCORE_COLUMNS, SCORES, unfinished_name
from aeflow_monai.result_tables import write_table

__all__ = ["Merged", "holds_other_run", "is_sharded", "merge"]

_PICTURES = 300  # number of cases whose overlays are included


class Merged(NamedTuple):
    """The merged result of all shards.

    Attributes:
        counts: numbers of done, failed and open studies in the shards that were begun.
        missing: numbers of the shards that were not begun.
        n_shards: number of all shards.
        repeated: number of lines that repeat a study.
        same_names: names, in lower case, of cases that occur in several shards; `results` distinguishes them.
    """

    counts: Counts
    missing: tuple[int, ...]
    n_shards: int
    repeated: int
    same_names: frozenset[str]

    @property
    def is_finished(self) -> bool:
        """Whether no study is open."""
        return not self.missing and not self.counts.open


def is_sharded(folder: str | Path) -> bool:
    """Whether an output folder holds ledgers."""
    return any(Path(folder, SHARDS).glob(f"*/{LEDGER}"))


def merge(folder: str | Path) -> Merged:
    """Write the tables of all shards, and report.html when no study is open.

    Until then the table is called scores.unfinished.csv, and there is no report. Rows are in the order of the studies'
    paths, whatever the number of shards. Shards may be running meanwhile.

    Args:
        folder: output folder.

    Returns:
        The progress of the shards.

    Raises:
        FileNotFoundError: no shard was begun.
        ValueError: shards were scored with different models, options or lists, or the list has changed.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        paths = sorted(Path(folder, SHARDS).glob(f"*/{LEDGER}"))
        opened = [stack.enter_context(Ledger(path, read_only=True)) for path in paths]
        # a ledger that is being created counts as a shard that was not begun
        ledgers = [ledger for ledger in opened if ledger.is_begun and "shard" in ledger.settings()]
        settings = [ledger.settings() for ledger in ledgers]
        paths = [ledger.path for ledger in ledgers]
        if not ledgers:
            raise FileNotFoundError(f"There is no shard in {folder}. Begin one with aeflow predict --shard K/N.")
        _require_own_folder(folder)
        _require_same(paths, settings)
        _require_one_list(paths, settings)
        counts = Counts(*(sum(each) for each in zip(*(ledger.counts() for ledger in ledgers), strict=True)))
        shards = [Shard(*own["shard"]) for own in settings]
        missing = tuple(sorted(set(range(1, shards[0].total + 1)) - {shard.number for shard in shards}))
        repeated = sum(own.get("repeated", 0) for own in settings)
        merged = Merged(counts, missing, shards[0].total, repeated, _same_names(ledgers))
        notes = {note: None for own in settings for note in own.get("notes", [])}  # unique, in order
        _write(folder, ledgers, {**settings[0], "notes": [*notes]}, merged)
    return merged


def _write(folder: Path, ledgers: Sequence[Ledger], settings: Mapping[str, Any], merged: Merged) -> None:
    finished = merged.is_finished
    scores, failures = (name if finished else unfinished_name(name) for name in (SCORES, FAILURES))
    kept = {scores, *([failures] if merged.counts.failed else [])}
    for name in (SCORES, unfinished_name(SCORES), FAILURES, unfinished_name(FAILURES), REPORT):
        if name not in kept and not (name == REPORT and finished):
            (folder / name).unlink(missing_ok=True)
    highest: list[tuple[float, str, str]] = []
    columns = ["case", "file", *SCORE_COLUMNS, "results"]
    write_table(folder / scores, columns, _noting(_rows(folder, ledgers, "done"), highest))
    if merged.counts.failed:
        columns = [*Failure._fields]
        write_table(folder / failures, columns, _rows(folder, ledgers, "failed"))
    write_json(folder / RUN_RECORD, _record(settings, merged))
    if finished:
        # the page finds pictures by case, and would confuse cases of the same name
        pictured = [found for found in sorted(highest, reverse=True) if _folded(found[1]) not in merged.same_names]
        folders = {case: results for _, case, results in pictured}
        write_report(folder, overlay_pictures(folder, folders, LIMIT, folders), settings.get("score", {}))


def _folded(name: str) -> str:
    """Lower the ASCII letters of a name, as SQLite's NOCASE comparison does."""
    return "".join(sign.lower() if sign.isascii() else sign for sign in name)


def _same_names(ledgers: Sequence[Ledger]) -> frozenset[str]:
    """Return the names that occur in several ledgers; within a ledger names are unique."""
    if len(ledgers) == 1:
        return frozenset()
    names = heapq.merge(*(map(_folded, ledger.names()) for ledger in ledgers))
    return frozenset(name for name, following in pairwise(names) if name == following)


def _record(settings: Mapping[str, Any], merged: Merged) -> dict[str, Any]:
    """Return run.json for all shards together."""
    done, failed, n_open = merged.counts
    record = settings["record"]
    return {
        **record,
        "machine": {**record["machine"], "runtime": ", ".join(_computed_by(settings))},
        "state": "finished" if merged.is_finished else "unfinished",
        "model": {"file": settings["model"], "sha256": settings["model_sha256"]},
        "notes": settings["notes"],
        "n_cases": done + failed,
        "n_failed": failed,
        "n_open": n_open,
        "n_shards": merged.n_shards,
        "shards_not_begun": list(merged.missing),
        "lines_that_repeat_a_study": merged.repeated,
    }


def _rows(folder: Path, ledgers: Sequence[Ledger], state: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of all ledgers, merged by the studies' keys."""

    def of(ledger: Ledger) -> Iterator[tuple[str, dict[str, Any]]]:
        place = ledger.path.parent.relative_to(folder).as_posix()
        for key, row in ledger.rows(state):
            yield key, {**row, "results": f"{place}/{row['results']}"}

    for _, row in heapq.merge(*map(of, ledgers), key=lambda found: found[0]):
        yield row


def _noting(rows: Iterable[dict[str, Any]], highest: list[tuple[float, str, str]]) -> Iterator[dict[str, Any]]:
    """Pass on the rows, and collect the most anomalous ones."""
    for row in rows:
        noted = (float(row["anomaly_score"]), str(row["case"]), str(row["results"]))
        (heapq.heappush if len(highest) < _PICTURES else heapq.heappushpop)(highest, noted)
        yield row


def holds_other_run(folder: Path) -> bool:
    """Whether a folder holds the results of a run without a ledger."""
    record = read_json(folder / RUN_RECORD)
    return bool(record) and "n_shards" not in record


def _computed_by(settings: Mapping[str, Any]) -> list[str]:
    """Return the runtimes that computed a shard, or before its first study the one that will."""
    return settings.get("computed_by") or [settings["runtime"]]


def _require_own_folder(folder: Path) -> None:
    """Refuse to overwrite the results of a later run without a ledger."""
    if holds_other_run(folder):
        raise ValueError(
            f"{folder} holds the results of a run that kept no ledger beside those of shards: {folder / SHARDS} is of "
            "an earlier one. Take it away, or move it to a folder of its own."
        )


def _require_same(paths: Sequence[Path], settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse shards that were scored differently."""
    counts = {own["shard"][1] for own in settings}
    if len(counts) > 1:
        raise ValueError(f"The shards have different counts: {some(sorted(counts))}. Keep those of one count.")
    places: dict[int, Path] = {}
    for path, own in zip(paths, settings, strict=True):
        number = int(own["shard"][0])
        if number in places:
            raise ValueError(
                f"{places[number]} and {path.parent} are both shard {number} of {own['shard'][1]}: one is a copy, and "
                "its studies would count twice. Take one away."
            )
        places[number] = path.parent
    settings = [{**own, "runtime": _computed_by(own)} for own in settings]
    for name, what in SAME.items():
        for path, own in zip(paths, settings, strict=True):
            if own.get(name) != settings[0].get(name):
                raise ValueError(
                    f"{path.parent} was scored with {what} than {paths[0].parent}: {short(own.get(name))}, there "
                    f"{short(settings[0].get(name))}. Begin the one that is wrong anew, with aeflow predict --shard "
                    "and --overwrite."
                )


def _require_one_list(paths: Sequence[Path], settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a list that differs between shards or has changed since, so that no added lines are lost.

    If the list is gone, only the shards are compared.
    """
    source = Path(settings[0]["source"])
    read = [
        (path.parent, own["list_sha256"]) for path, own in zip(paths, settings, strict=True) if "list_sha256" in own
    ]
    now = [(source, digest_of(source))] if read and is_list(source) else []
    for place, digest in [*read, *now]:
        if digest != read[0][1]:
            when = "since its shards were scored" if place == source else f"between {read[0][0]} and {place}"
            raise ValueError(
                f"{source} has changed {when}, so that studies may be missing. Give the commands of all shards again: "
                "they read the list anew, and what is done is not done again."
            )

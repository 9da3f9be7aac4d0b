"""The run of a shard: the open studies of its ledger are scored, and each is recorded when it is done."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from aeflow_monai import progress
from aeflow_monai.about import __version__
from aeflow_monai.archive.ledger import LEDGER, Counts, Ledger
from aeflow_monai.archive.listed import studies_in
from aeflow_monai.archive.merged import holds_other_run
from aeflow_monai.archive.shard import SAME, SHARDS, ShardRun, short
from aeflow_monai.archive.study import Study, is_list
from aeflow_monai.archive.study_scorer import Outcome, StudyScorer
from aeflow_monai.engine.config.run_config import open_config
from aeflow_monai.engine.config.stored_model import model_path
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.evaluation.report_writer import report_model
from aeflow_monai.engine.runs.run_record import describe_run
from aeflow_monai.engine.verbs import check_scoring
from aeflow_monai.file_digests import digest_of
from aeflow_monai.files import sweep
from aeflow_monai.locks import claim_folder, release_folder
from aeflow_monai.printable import first_line, shown
from aeflow_monai.result_files import RUN_RECORD

__all__ = ["OpenShard", "planned", "run_shard"]

_logger = logging.getLogger(__name__)

_AT_ONCE = 32  # studies claimed together
_SAID = 20  # failures reported one by one
_OF_RUN = ("dataset_dir", "output_dir", "overwrite", "device", "runtime", "imports")  # no effect, or separate


def run_shard(
    run: ShardRun,
    retry_failed: bool = False,
    overwrite: bool = False,
    score: Callable[[OpenShard], None] | None = None,
) -> Counts:
    """Score the open studies of a shard, resuming an earlier run.

    Args:
        run: settings of the run.
        retry_failed: also score failed studies again.
        overwrite: start again, and delete the outputs of an earlier run of this shard.
        score: scores the open studies; if None, this process does.

    Returns:
        The numbers of done, failed and open studies.

    Raises:
        FileNotFoundError: there is no model.
        FolderInUse: another process is working on this shard.
        ValueError: the folder was begun with another model, list, options, or number of shards; the list cannot be
            read; or an option is refused, see `check_scoring`.
        LedgerError: the ledger cannot be written; its contents are kept.
        OSError: the disk is full or read-only.
    """
    with closing(OpenShard(run, retry_failed, overwrite)) as opened:
        opened.tell()
        if opened.counts.open:
            (score or _score_here)(opened)
        opened.ledger.end()
        return opened.ledger.counts()


def _score_here(opened: OpenShard) -> None:
    run = opened.run
    scorer = StudyScorer(run.model, run.options, run.shard_folder)
    opened.ledger.set(score=report_model(scorer.network.score))
    while claims := opened.ledger.claim(_AT_ONCE):
        for outcome in scorer.score(claims):
            opened.take(outcome)


def planned(run: ShardRun, overwrite: bool = False) -> Iterator[Study]:
    """Yield the studies of a run, also those that an earlier one has done; nothing is written.

    Args:
        run: settings of the run.
        overwrite: the run would start again.

    Raises:
        ValueError: the run would be refused, see `run_shard`.
    """
    parser, _ = _checked(run)
    if not overwrite:
        _require_no_other_run(run.folder, overwrite=False)
    yield from studies_in(run.source, run.shard, run.folder, **parser.get_parsed_content("listing"))


def _checked(run: ShardRun) -> tuple[ConfigParser, GivenConfig]:
    """Open the config of a run that can be scored."""
    parser, given = open_config([run.model / "configs" / "inference.yaml"], run.options, str(run.source), run.folder)
    check_scoring(given, str(run.model), str(run.source))
    _require_count(run)
    return parser, given


class OpenShard:
    """A shard whose folder is locked for this process, with the ledger of its list.

    Args:
        run: settings of the run.
        retry_failed: also reopen failed studies.
        overwrite: start again.

    Raises:
        ValueError: see `run_shard`, also for other errors.
    """

    def __init__(self, run: ShardRun, retry_failed: bool, overwrite: bool) -> None:
        self.run = run
        parser, given = _checked(run)
        _require_no_other_run(run.folder, overwrite)
        claim_folder(run.shard_folder, "output_dir")
        with ExitStack() as opened:
            opened.callback(release_folder, run.shard_folder)
            if overwrite:
                _empty(run.shard_folder)
            for folder in (run.shard_folder, *filter(Path.is_dir, run.shard_folder.iterdir())):
                sweep(folder)
            self.ledger = Ledger(run.shard_folder / LEDGER)
            opened.callback(self.ledger.abandon)
            self._begin(given, dict(parser.get_parsed_content("listing")), retry_failed)
            self.counts = self.ledger.counts()
            opened.pop_all()  # keep it open until `close`
        self.n_said = 0

    def close(self) -> None:
        """Commit pending changes, and release the shard."""
        with ExitStack() as last:  # release even if the disk is full
            last.callback(release_folder, self.run.shard_folder)
            last.callback(self.ledger.close)
            self.ledger.release()

    def tell(self) -> None:
        """Report the number of finished studies."""
        progress.advance("studies", self.counts.done + self.counts.failed, sum(self.counts))

    def take(self, outcome: Outcome) -> None:
        """Record the outcome of a study, and report progress."""
        number, row, failure, runtime, note = outcome
        done, failed, n_open = self.counts
        if runtime is not None and runtime not in self.computed_by:
            self.computed_by.append(runtime)
            self.ledger.set(computed_by=sorted(self.computed_by))
        if note and note not in self.notes:
            self.notes.append(note)
            self.ledger.set(notes=self.notes)
        if row is not None:
            self.ledger.done(number, row)
            self.counts = Counts(done + 1, failed, n_open - 1)
            cells = {name: value for name, value in row.items() if not name.endswith("_sha256")}
            progress.case({"state": "scored", **cells, "results": str(self.run.shard_folder)})
        elif failure is not None:
            self.ledger.failed(number, failure)
            self.counts = Counts(done, failed + 1, n_open - 1)
            progress.case({"state": "failed", **failure, "results": str(self.run.shard_folder)})
            self._say(failure)
        self.tell()

    def _begin(self, given: GivenConfig, listing: Mapping[str, Any], retry_failed: bool) -> None:
        of_run = {**describe_run(given), "command": self.run.command}
        settings = _settings(self.run, given, of_run["machine"].get("runtime", "torch"))
        earlier = self.ledger.settings()
        binding = earlier if any(self.ledger.counts()) else {}  # a refused list has left no study
        for name, what in SAME.items():
            if binding.get(name, settings[name]) != settings[name]:
                raise ValueError(
                    f"{self.run.shard_folder} was begun with {what}: {short(earlier[name])} there, now "
                    f"{short(settings[name])}. Give the same, or another folder with --output_dir, or begin anew with "
                    "--overwrite True."
                )
        state = _state_of(self.run.source)
        self.computed_by: list[str] = earlier.get("computed_by", [])
        self.notes: list[str] = earlier.get("notes", [])
        self.ledger.set(**settings, record=of_run)
        if state and earlier.get("listed") == state and "list_sha256" in earlier:  # a million lines take a minute
            self.ledger.begin(None, retry_failed)
            return
        digest = digest_of(self.run.source) if state else None
        repeated = self.ledger.begin(
            studies_in(self.run.source, self.run.shard, self.run.folder, **listing), retry_failed
        )
        self.ledger.set(repeated=repeated, listed=state, list_sha256=digest)
        if repeated:
            _logger.warning(f"{repeated} lines of {shown(self.run.source)} name a study again, which is scored once.")
        if gone := self.ledger.unlisted():
            _logger.warning(f"{gone} studies that are done stand no longer in {shown(self.run.source)}. They are kept.")

    def _say(self, failure: Mapping[str, Any]) -> None:
        self.n_said += 1
        if self.n_said <= _SAID:
            message = shown(first_line(failure["message"]))
            _logger.warning(f"Case {shown(failure['case'])} failed: {message}")
        elif self.n_said == _SAID + 1:
            _logger.warning("Further cases that fail are not said one by one.")


def _settings(run: ShardRun, given: GivenConfig, runtime: str) -> dict[str, Any]:
    content = {name: value for name, value in given.content.items() if name not in _OF_RUN}
    options = describe_run(given._replace(content=content))["config_sha256"]
    return {
        "shard": list(run.shard),
        "source": str(run.source),
        "model": str(run.model),
        "model_sha256": digest_of(model_path(run.model)),
        "options_sha256": options,
        "version": __version__,
        "runtime": runtime,  # "auto" depends on the installed packages
    }


def _state_of(source: Path) -> list[int]:
    """Return size and modification time of a list; empty for a folder."""
    if not is_list(source):
        return []
    found = source.stat()
    return [found.st_size, found.st_mtime_ns]


def _require_count(run: ShardRun) -> None:
    """Refuse a number of shards that differs from that of the folder."""
    for folder in (run.folder / SHARDS).glob("*-of-*"):
        count = folder.name.rpartition("-of-")[2]
        if count != str(run.shard.total):
            raise ValueError(
                f"{run.folder} was begun with {count} shards; got --shard {run.shard.number}/{run.shard.total}. Give "
                f"--shard K/{count}, or another folder with --output_dir."
            )


def _require_no_other_run(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with results of a run without a ledger, or delete its run.json if they may be overwritten."""
    if not holds_other_run(folder):
        return
    if not overwrite:
        raise ValueError(
            f"{folder} holds the results of a run that kept no ledger, which cannot go on. Give another folder with "
            "--output_dir, or --overwrite True to replace them."
        )
    (folder / RUN_RECORD).unlink()


def _empty(folder: Path) -> None:
    """Delete the outputs of an earlier run of a shard."""
    if (folder / LEDGER).is_file():
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        for path in (folder / LEDGER, folder / f"{LEDGER}-journal"):
            path.unlink(missing_ok=True)

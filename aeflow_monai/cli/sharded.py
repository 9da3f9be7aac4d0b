"""`aeflow predict --shard` and `aeflow report` of shards: score archives in parts that can stop and resume."""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aeflow_monai.cli.bundle_run import options_of, require_sections
from aeflow_monai.cli.given_images import data_of
from aeflow_monai.cli.given_paths import WrongUse
from aeflow_monai.cli.summary import say_scores
from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.files import user_path
from aeflow_monai.printable import counted, some
from aeflow_monai.result_files import FAILURES, REPORT, SCORES, unfinished_name
from aeflow_monai.result_tables import iter_rows

if TYPE_CHECKING:
    from aeflow_monai.archive import Merged, ShardRun
    from aeflow_monai.archive.ledger import Counts

__all__ = ["is_of_archive", "predict_shard", "report_shards"]

_SHOWN = 5  # studies of a dry run
_LINES = (".txt", ".jsonl")  # lists that need a ledger


def is_of_archive(given: argparse.Namespace) -> bool:
    """Whether a prediction keeps a ledger: by an option, or since its list is of an archive."""
    lines = len(given.images) == 1 and given.images[0].lower().endswith(_LINES)
    return bool(given.shard or given.resume or given.retry_failed or given.ray or lines)


def predict_shard(given: argparse.Namespace, terminal: Terminal) -> None:
    """Score the open studies of a shard, or of all.

    Raises:
        WrongUse: the list comes from standard input, which cannot be read again.
        ValueError: an argument or option is invalid.
        CaseFailures: some studies failed.
    """
    if "-" in given.images:
        raise WrongUse("A run that can go on reads its list again: give the path of a list, in place of -.")
    run = _run_of(given, terminal)
    if given.dry_run:
        _say_planned(run, given.overwrite, terminal)
        return
    terminal.say(f"Scoring shard {run.shard.number}/{run.shard.total} of {run.source} with {given.model}.")
    terminal.when_stopped = lambda: f"What is done is kept in {run.shard_folder}. Go on with:\n  {terminal.command}"
    with terminal.progress():
        counts = _score(given, run)
    if run.shard.total == 1:
        report_shards(run.folder, terminal)
        return
    said = f"{counts.done} of {sum(counts)} studies done, {counts.failed} failed"
    terminal.result(f"shard {run.shard.number}/{run.shard.total}: {said}")
    terminal.say(f"Next, when all shards are done: aeflow report {shlex.quote(str(run.folder))}")
    _fail_if_any(run.folder, counts, "aeflow report lists them.")


def report_shards(folder: Path, terminal: Terminal) -> None:
    """Merge the shards of a folder, and print their progress.

    Raises:
        CaseFailures: some studies failed, or are open.
    """
    from aeflow_monai.archive import merge

    merged = merge(folder)
    terminal.line({**merged.counts._asdict(), "missing_shards": list(merged.missing), "shards": merged.n_shards})
    done, failed, n_open = merged.counts
    terminal.result(f"{counted(sum(merged.counts), 'study', 'studies')}: {done} done, {failed} failed, {n_open} open")
    scores = next((path for name in (SCORES, unfinished_name(SCORES)) if (path := folder / name).is_file()), None)
    if done and scores is not None:
        say_scores(iter_rows(scores), failed, terminal)
    if merged.missing:
        terminal.result(f"not begun: {some([f'{number}/{merged.n_shards}' for number in merged.missing], 20)}")
    if merged.repeated:
        terminal.result(f"{merged.repeated} lines name a study again, which was scored once")
    if merged.same_names:
        names = some(sorted(merged.same_names), 5)
        terminal.result(f"cases of different shards with one name, which the column results tells apart: {names}")
    terminal.result(f"results: {folder}")
    if merged.is_finished:
        terminal.result(f"report: {folder / REPORT}")
    _fail_if_any(folder, merged.counts, _how_to_go_on(merged, folder), merged)


def _run_of(given: argparse.Namespace, terminal: Terminal) -> ShardRun:
    from aeflow_monai.archive import Shard, ShardRun

    shard = Shard.parse(given.shard) if given.shard else Shard(1, 1)
    outputs = f"[{given.outputs}]" if given.outputs else None
    options = options_of(given, outputs=outputs)
    model = user_path(given.model).absolute()
    require_sections([model / "configs" / "inference.yaml"], options)
    source = user_path(data_of([*dict.fromkeys(given.images)])).absolute()  # each once
    return ShardRun(model, source, user_path(given.output).absolute(), shard, options, terminal.command)


def _say_planned(run: ShardRun, overwrite: bool, terminal: Terminal) -> None:
    """Say how many studies a shard has, and the first of them; their files are not opened."""
    from aeflow_monai.archive import planned

    n_studies, first = 0, []
    for study in planned(run, overwrite):
        n_studies += 1
        if n_studies <= _SHOWN:
            first.append(study)
    number, total = run.shard
    terminal.result(
        f"would score {counted(n_studies, 'study', 'studies')} of shard {number}/{total}, but for those done:"
    )
    for study in first:
        images = study.item["image"]
        terminal.result(f"  {images if isinstance(images, str) else ', '.join(images)}")
    if n_studies > len(first):
        terminal.result(f"  and {n_studies - len(first)} more")
    terminal.result(f"would write to {run.shard_folder}")


def _score(given: argparse.Namespace, run: ShardRun) -> Counts:
    from aeflow_monai.archive import run_shard

    if not given.ray:
        return run_shard(run, given.retry_failed, given.overwrite)
    from aeflow_monai.archive.ray_workers import score_on_ray

    score = partial(score_on_ray, address=given.ray, n_workers=given.workers)
    return run_shard(run, given.retry_failed, given.overwrite, score)


def _how_to_go_on(merged: Merged, folder: Path) -> str:
    if not merged.is_finished:
        return "Give the commands of the open shards again; what is done is not done again."
    return f"{folder / FAILURES} lists them. Try them again with --retry-failed."


def _fail_if_any(folder: Path, counts: Counts, remedy: str, merged: Merged | None = None) -> None:
    from aeflow_monai.errors import CaseFailures

    if counts.failed or counts.open or (merged is not None and merged.missing):
        total = sum(counts)
        shards = f"; {len(merged.missing)} shards were not begun" if merged is not None and merged.missing else ""
        what = f"Of {counted(total, 'study', 'studies')} {counts.failed} failed and {counts.open} are open{shards}"
        raise CaseFailures(f"{what}:\n{remedy}")

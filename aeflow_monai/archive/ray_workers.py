"""Workers on a Ray cluster that keep the model loaded; studies of a worker that dies are scored by others."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aeflow_monai.archive.ledger import Claim
from aeflow_monai.archive.shard_run import OpenShard
from aeflow_monai.archive.study_scorer import Outcome, StudyScorer
from aeflow_monai.engine.evaluation.report_writer import report_model

__all__ = ["score_on_ray"]

_logger = logging.getLogger(__name__)

_TOGETHER = 8  # studies sent to a worker together
_AHEAD = 2  # groups queued at a worker, so that it need not wait; no more, so that few studies are claimed
_PATIENCE = 0.2  # seconds in which outcomes are collected, since returning each alone costs as much as a small study
_STARTS = 5  # workers that may die in a row without a result


class _Worker:
    """The actor that runs in the process of a worker."""

    def __init__(self, model: Path, options: Mapping[str, str], folder: Path) -> None:
        self.scorer = StudyScorer(model, options, folder)

    def report_model(self) -> dict[str, Any]:
        return report_model(self.scorer.network.score)

    def score(self, claims: list[Claim]) -> Iterator[list[Outcome]]:
        done, since = [], time.monotonic()
        for outcome in self.scorer.score(claims):
            done.append(outcome)
            if time.monotonic() - since >= _PATIENCE:
                yield done
                done, since = [], time.monotonic()
        if done:
            yield done


@dataclass
class _Running:
    """A worker and its groups: for each generator of outcomes, the studies that have no outcome yet."""

    actor: Any
    groups: dict[Any, dict[int, Claim]] = field(default_factory=dict)


def score_on_ray(opened: OpenShard, address: str, n_workers: int | None = None) -> None:
    """Score the open studies of a shard on a Ray cluster; only this process writes the ledger.

    Each worker reads, scores and writes concurrently, and has a few studies queued. If a worker dies, alone or with its
    node, another replaces it, and its studies without an outcome are open again.

    It uses plain actors rather than Ray Data, which rescores a lost block as a whole, returns the rows of a block
    together, whereas here each study is recorded as soon as it is done, and would hold the whole list.

    Args:
        opened: the shard; all nodes have to see its folder, the model and the images under the same paths.
        address: address of the cluster, such as "ray://head:10001" or "auto"; "local" starts one on this machine.
        n_workers: number of workers; if None, one per GPU of the cluster, or per core without GPUs.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        RuntimeError: workers die before they return a result.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('--ray needs Ray: pip install "aeflow_monai[ray]".') from error
    ours = not ray.is_initialized()
    if ours:
        local = {"num_cpus": n_workers, "include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **local)
    try:
        _Crew(ray, opened, n_workers).score()
    finally:
        if ours:
            ray.shutdown()


class _Crew:
    """The workers of a run."""

    def __init__(self, ray: Any, opened: OpenShard, n_workers: int | None) -> None:
        self.ray, self.opened = ray, opened
        resources = ray.cluster_resources()
        n_gpus = 0 if opened.run.options.get("device", "") == "cpu" else int(resources.get("GPU", 0))
        n_workers = n_workers or n_gpus or max(1, int(resources.get("CPU", 1)))
        # a worker per core or GPU, with as many threads as it has cores
        self.actor = ray.remote(num_cpus=1, num_gpus=1 if n_gpus else 0, max_restarts=0)(_Worker)
        self.n_deaths = 0  # in a row, without a result
        self.workers = [self._start() for _ in range(n_workers)]

    def score(self) -> None:
        """Score all open studies."""
        is_told = False
        while True:
            self._send()
            waiting = {outcomes: worker for worker in self.workers for outcomes in worker.groups}
            if not waiting:
                return
            ready, _ = self.ray.wait([*waiting], num_returns=1)
            worker, outcomes = waiting[ready[0]], ready[0]
            try:
                if not is_told:
                    self.opened.ledger.set(score=self.ray.get(worker.actor.report_model.remote()))
                    is_told = True
                done = self.ray.get(next(outcomes))
            except StopIteration:
                self._close_group(worker, outcomes)
            except self.ray.exceptions.RayActorError as error:
                self._replace(worker, error)
            else:
                self.n_deaths = 0
                for outcome in done:
                    del worker.groups[outcomes][outcome.number]
                    self.opened.take(Outcome(*outcome))

    def _start(self) -> _Running:
        run = self.opened.run
        return _Running(self.actor.remote(run.model, dict(run.options), run.shard_folder))

    def _send(self) -> None:
        """Send studies to each worker up to its limit."""
        for _ in range(_AHEAD):
            for worker in self.workers:
                if len(worker.groups) < _AHEAD and (claims := self.opened.ledger.claim(_TOGETHER)):
                    outcomes = worker.actor.score.options(num_returns="streaming").remote(claims)
                    worker.groups[outcomes] = {claim.number: claim for claim in claims}

    def _close_group(self, worker: _Running, outcomes: Any) -> None:
        if left := worker.groups.pop(outcomes):
            raise RuntimeError(f"A worker gave nothing back for {len(left)} studies, such as number {min(left)}.")

    def _replace(self, worker: _Running, error: Exception) -> None:
        """Replace a worker that died, and reopen its studies."""
        begun, *others = [list(group) for group in worker.groups.values()]
        n_lost = len(begun) + sum(map(len, others))
        self.n_deaths += 1
        if self.n_deaths >= _STARTS:
            raise RuntimeError(f"{_STARTS} workers ended without a result. The last: {error}") from error
        _logger.warning(f"A worker ended, and another takes its place; {n_lost} studies are open again.")
        self.opened.ledger.ended(begun)
        self.opened.ledger.release(number for group in others for number in group)
        self.workers[self.workers.index(worker)] = self._start()

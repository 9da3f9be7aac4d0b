"""Workers on a Ray cluster that keep the model: studies of one that dies are scored by others."""

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

_TOGETHER = 8  # studies that are sent to a worker together
_AHEAD = (
    2  # such groups of a worker, so that it does not wait for the next; no more, so that the ledger does not run off
)
_PATIENCE = 0.2  # seconds in which outcomes are gathered: each that is given back alone costs as much as a small study
_STARTS = 5  # workers that may die in turn without a single result


class _Worker:
    """What runs in the process of a worker."""

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
    """A worker, and what it was sent: from the generator of a group's outcomes to its studies without one."""

    actor: Any
    groups: dict[Any, dict[int, Claim]] = field(default_factory=dict)


def score_on_ray(opened: OpenShard, address: str, n_workers: int | None = None) -> None:
    """Score what is open of a shard on a Ray cluster; only this process writes the ledger.

    Each worker reads, scores and writes at the same time, and is sent a few studies ahead. When one dies, alone or with
    its node, another takes its place, and the studies that it has not given back are open again.

    These are plain actors rather than a Ray data set: that scores a lost block again as a whole, and gives back the
    rows of a block together, where here each study is noted as soon as it is done; and it would hold all of the list.

    Args:
        opened: the shard, in a folder that all nodes see under this path, as they do the model and the images.
        address: of the cluster, as "ray://head:10001" or "auto"; "local" starts one on this machine.
        n_workers: how many; if None one for each GPU of the cluster, or without any for each core.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        RuntimeError: workers die before they have given anything back.
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
        # a worker for each core or GPU, with as many threads as it has cores
        self.actor = ray.remote(num_cpus=1, num_gpus=1 if n_gpus else 0, max_restarts=0)(_Worker)
        self.n_deaths = 0  # in turn, without a result
        self.workers = [self._start() for _ in range(n_workers)]

    def score(self) -> None:
        """Score all that is open."""
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
        """Send each worker studies, as many as it may have."""
        for _ in range(_AHEAD):
            for worker in self.workers:
                if len(worker.groups) < _AHEAD and (claims := self.opened.ledger.claim(_TOGETHER)):
                    outcomes = worker.actor.score.options(num_returns="streaming").remote(claims)
                    worker.groups[outcomes] = {claim.number: claim for claim in claims}

    def _close_group(self, worker: _Running, outcomes: Any) -> None:
        if left := worker.groups.pop(outcomes):
            raise RuntimeError(f"A worker gave nothing back for {len(left)} studies, such as number {min(left)}.")

    def _replace(self, worker: _Running, error: Exception) -> None:
        """Let another worker take the place of one that died, and open its studies again."""
        begun, *others = [list(group) for group in worker.groups.values()]
        n_lost = len(begun) + sum(map(len, others))
        self.n_deaths += 1
        if self.n_deaths >= _STARTS:
            raise RuntimeError(f"{_STARTS} workers ended without a result. The last: {error}") from error
        _logger.warning(f"A worker ended, and another takes its place; {n_lost} studies are open again.")
        self.opened.ledger.ended(begun)
        self.opened.ledger.release(number for group in others for number in group)
        self.workers[self.workers.index(worker)] = self._start()

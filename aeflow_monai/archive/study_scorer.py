"""Score studies with a model that stays loaded; reading, network and writing overlap."""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from monai.transforms import Compose

from aeflow_monai.archive.ledger import Claim
from aeflow_monai.archive.listed import with_problem
from aeflow_monai.engine.config.fixed_options import require_own_config
from aeflow_monai.engine.config.run_config import open_config
from aeflow_monai.engine.evaluation.score_writer import score_row
from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.engine.runs.run_record import hashes_of
from aeflow_monai.errors import Failure, failure_of, is_disk_error, root_cause, unwrapped

__all__ = ["Outcome", "StudyScorer"]

_LARGE = 2**24  # voxels above which a study is alone in memory
_AT_ONCE = 3  # studies: one being read, one in the network, one being written


class Outcome(NamedTuple):
    """The outcome of a study.

    Attributes:
        number: number of the study in its ledger.
        row: cells of scores.csv, and the hash of the image; None if the study failed.
        failure: cells of failures.csv; None if it did not fail.
        runtime: the runtime that computed it; torch where another one failed.
        note: a note on images so far that the model was not trained for; empty if there were none.
    """

    number: int
    row: dict[str, Any] | None
    failure: dict[str, Any] | None
    runtime: str | None = None
    note: str = ""


class _Chain(NamedTuple):
    """Transforms used by one study at a time, since their inverses depend on their recorded state."""

    preprocessing: Compose
    postprocessing: Compose


class _Read(NamedTuple):
    """A study after reading its image, or its failure."""

    claim: Claim
    chain: _Chain
    data: dict[Any, Any]
    failure: Failure | None

    @property
    def is_large(self) -> bool:
        return self.failure is None and math.prod(self.data["image"].shape) >= _LARGE


class StudyScorer:
    """Score studies with a model that stays loaded, with the same results as `bundle/configs/inference.yaml`.

    Args:
        model: folder of a training.
        options: config options by name, as typed.
        folder: output folder; the files of a study go to its claim's folder below it.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the parts of the bundle do not belong together.
    """

    def __init__(self, model: str | Path, options: Mapping[str, str], folder: str | Path) -> None:
        self.folder = Path(folder)
        self.model, self.options = Path(model), dict(options)
        stored = require_own_config(self.model, None)
        parser = self._parser(self.folder)
        with unwrapped():
            self.network: Detector = parser.get_parsed_content("network")
            self.inferer: Any = parser.get_parsed_content("inferer")
        self.network.load_state_dict(dict(stored.state))
        self.network.eval()
        self._chains: dict[str, Iterator[_Chain]] = {}

    def score(self, claims: Iterable[Claim]) -> Iterator[Outcome]:
        """Score studies; while one is in the network, the next is read and the previous one written.

        Large studies are alone in memory.

        Args:
            claims: the studies.

        Yields:
            The outcome of each study, in order, as soon as all of its files have their final names.

        Raises:
            OSError: the disk is full or read-only, so that every study would fail.
        """
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            waiting = iter(claims)
            reading = self._begin(reader, waiting)
            writing: deque[Future[Outcome]] = deque()
            while reading is not None:
                study = reading.result()
                reading = None if study.is_large else self._begin(reader, waiting)
                if study.is_large:
                    yield from _results(writing)
                looked = self._look(study)
                yield from _results(writing)
                writing.append(writer.submit(self._write, looked))
                if study.is_large:
                    del study, looked
                    yield from _results(writing)
                    gc.collect()  # volumes and their maps are in reference cycles
                    reading = self._begin(reader, waiting)
            yield from _results(writing)

    def _begin(self, reader: ThreadPoolExecutor, waiting: Iterator[Claim]) -> Future[_Read] | None:
        claim = next(waiting, None)
        return None if claim is None else reader.submit(self._read, claim, self._chain(claim.folder))

    def _read(self, claim: Claim, chain: _Chain) -> _Read:
        item = dict(claim.item)
        try:
            return _Read(claim, chain, dict(chain.preprocessing(with_problem(item))), None)
        except Exception as error:
            return _Read(claim, chain, {}, _failure(item, "read", error))

    @torch.no_grad()
    def _look(self, study: _Read) -> _Read:
        if study.failure is not None:
            return study
        try:
            inputs = study.data["image"][None].to(self.network.device)
            (found,) = decollate_batch(self.inferer.stacks(inputs, self.network))
        except Exception as error:
            return study._replace(data={}, failure=_failure(study.claim.item, "score", error))
        return study._replace(data={**study.data, "pred": found})

    @torch.no_grad()
    def _write(self, study: _Read) -> Outcome:
        number, item = study.claim.number, study.claim.item
        failure = study.failure
        if failure is None:
            try:
                row = score_row(study.data, study.chain.postprocessing(study.data))
                hashes = {name: value for name, value in hashes_of(item).items() if name != "case"}
                cells = {name: _plain(value) for name, value in {**row, **hashes}.items()}
                return Outcome(number, cells, None, self.inferer.runtimes.used, " ".join(self.inferer.notes))
            except Exception as error:
                failure = _failure(item, "score", error)
        return Outcome(number, None, failure._asdict())

    def _chain(self, folder: str) -> _Chain:
        """Return transforms that write to a folder and that no other study is using."""
        if folder not in self._chains:
            # keep those of the last folder, which may still be in use
            self._chains = dict([*self._chains.items()][-1:])
            self._chains[folder] = cycle([self._new_chain(folder) for _ in range(_AT_ONCE)])
        return next(self._chains[folder])

    def _new_chain(self, folder: str) -> _Chain:
        parser = self._parser(self.folder / folder)
        with unwrapped():
            return _Chain(parser.get_parsed_content("preprocessing"), parser.get_parsed_content("postprocessing"))

    def _parser(self, folder: Path) -> ConfigParser:
        parser, _ = open_config([self.model / "configs" / "inference.yaml"], self.options, "", folder)
        parser["output_dir"] = str(folder)
        parser["pictures"] = False  # they are for a page of a single process's studies
        return parser


def _results(writing: deque[Future[Outcome]]) -> Iterator[Outcome]:
    while writing:
        yield writing.popleft().result()


def _failure(item: Mapping[str, Any], stage: str, error: Exception) -> Failure:
    if is_disk_error(root_cause(error)):
        raise error
    return failure_of(item, stage, error)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value

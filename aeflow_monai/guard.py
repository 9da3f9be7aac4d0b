"""One bad case does not end a run: it is named at once and again at the end, and the others go on."""

from __future__ import annotations

import errno
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.utils import ImageMetaKey, ensure_tuple
from torch.utils.data import DataLoader, Dataset

from aeflow_monai.workflow import describe_error, root_cause
from aeflow_monai.writers import ScoreTable

__all__ = ["CaseFailures", "Failure", "FailureLog", "GuardedDataset", "GuardedEvaluator"]

_logger = logging.getLogger(__name__)

# What stands in the place of an item that could not be loaded; strings, which any loader can collate and send.
_FAILURE = "failure"
# A disk that is full, over quota or read-only fails every case from now on.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Lines of a summary; the table has them all.
_MAX_LISTED = 20


class CaseFailures(RuntimeError):
    """Some cases failed; the others were computed and written."""


class Failure(NamedTuple):
    """A case that failed: its name and file, what was done with it, and the message of the error."""

    case: str
    file: str
    stage: str
    message: str


class FailureLog:
    """Cases that failed: a table that grows as they come, a warning for each, an error at the end.

    Args:
        path: of the table, with the columns case, file, stage and message; there is none if nothing failed, or if
            this is None.

    Example:
        >>> import tempfile
        >>> failures = FailureLog(f"{tempfile.mkdtemp()}/failures.csv")
        >>> for case in ("a", "b"):
        ...     with failures.catching({"case": case, "image": f"{case}.nii.gz"}, "read"):
        ...         if case == "b":
        ...             raise ValueError("It is empty.")
        >>> print(Path(failures.path).read_text(), end="")
        case,file,stage,message
        b,b.nii.gz,read,It is empty.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.table: ScoreTable | None = None
        self.failures: list[Failure] = []

    def __len__(self) -> int:
        return len(self.failures)

    def start(self) -> None:
        """Forget the failures of an earlier run, and remove its table."""
        self.failures = []
        self.table = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def add(self, failure: Failure) -> None:
        """Write one failure to the table and to the log."""
        self.failures.append(failure)
        if self.path is not None:
            self.table = self.table or ScoreTable(self.path, Failure._fields)
            self.table.append({**failure._asdict(), "message": " ".join(failure.message.split())})
        _logger.warning(f"Case {failure.case} failed, the others go on: {_first_line(failure.message)}")

    @contextmanager
    def catching(self, item: Mapping[Any, Any], stage: str) -> Iterator[None]:
        """Let an error inside end this case only, unless it is the disk's, which no other case would escape.

        Args:
            item: of a datalist, or a batch of one case, with "case" and "image".
            stage: what is done with it, in a word.
        """
        try:
            yield
        except Exception as error:
            if getattr(root_cause(error), "errno", None) in _DISK_ERRORS:
                raise
            self.add(failure_of(item, stage, error))

    def raise_if_any(self, n_cases: int) -> None:
        """End a run in which cases failed with an error, when all that could be written is.

        Args:
            n_cases: how many there were, with those that failed.

        Raises:
            CaseFailures: names each case with its file and what is wrong.
        """
        if not self.failures:
            return
        count = len(self.failures)
        what = f"All {n_cases} cases" if count == n_cases else f"{count} of {n_cases} cases"
        lines = [f"{what if n_cases > 1 else 'The only case'} failed:"]
        for failure in self.failures[:_MAX_LISTED]:
            reason = _first_line(failure.message)
            where = failure.stage if failure.file in reason else f"{failure.file}, {failure.stage}"
            lines.append(f"- {failure.case} ({where}): {reason}")
        if count > _MAX_LISTED:
            lines.append(f"- and {count - _MAX_LISTED} more")
        if self.path is not None:
            others = f"The outputs of the other {n_cases - count} are in {self.path.parent.absolute()}. "
            lines.append(f"{others if count < n_cases else ''}{self.path.absolute()} lists all that failed.")
        raise CaseFailures("\n".join(lines))


class GuardedDataset(Dataset[dict[str, Any]]):
    """A datalist whose items are transformed when they are asked for; one that fails becomes a record of its failure.

    It has as many items as the datalist, whatever fails, and works in any data loader with a batch size of 1, with
    workers or without. `GuardedEvaluator` reports the records.

    Args:
        data: a datalist.
        transform: gives a dictionary for an item.

    Example:
        >>> dataset = GuardedDataset([{"case": "a", "image": "a.png"}], lambda item: item["nothing"])
        >>> dataset[0]
        {'case': 'a', 'file': 'a.png', 'stage': 'read', 'failure': "KeyError: 'nothing'"}
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> None:
        self.data = data
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        try:
            return dict(self.transform(item))
        except Exception as error:
            *known, message = failure_of(item, "read", error)
            return {**dict(zip(Failure._fields[:-1], known, strict=True)), _FAILURE: message}


class GuardedEvaluator(SupervisedEvaluator):  # type: ignore[misc]
    """MONAI's evaluator, which goes on after a case that fails, and ends with an error if one did.

    Guarded are a case's loading (by a `GuardedDataset`), the network and the postprocessing. For handlers a case that
    failed is an iteration with an empty batch and an empty output. When all handlers are done, `CaseFailures` is
    raised, so that the process does not end as if all were well. What is no case's fault (a checkpoint that does not
    fit, a handler's error) ends the run at once.

    Args:
        failures: where failures are noted.
        options: of `monai.engines.SupervisedEvaluator`; `val_data_loader` has to have a batch size of 1.

    Raises:
        ValueError: the loader has another batch size, so that one case would take others with it.
    """

    def __init__(self, *, failures: FailureLog, **options: Any) -> None:
        loader = options.get("val_data_loader")
        if isinstance(loader, DataLoader) and loader.batch_size != 1:
            raise ValueError(
                f"Expected a data loader with a batch size of 1, so that a case that fails does so alone; got "
                f"{loader.batch_size}. Set its batch_size to 1; the slices of a volume go through the network together "
                "anyway."
            )
        self.failures = failures
        self.n_cases = 0
        super().__init__(**options)
        self.add_event_handler(Events.GET_BATCH_STARTED, _forget)

    def run(self, global_epoch: int = 1) -> None:
        """Evaluate all cases.

        Args:
            global_epoch: see `monai.engines.Evaluator.run`.

        Raises:
            CaseFailures: at the end, if a case failed.
        """
        self.failures.start()
        self.n_cases = 0
        gc.freeze()  # what is there before the first case need not be looked through after each
        try:
            super().run(global_epoch)
        finally:
            gc.unfreeze()
        self.failures.raise_if_any(self.n_cases)

    def _iteration(self, engine: GuardedEvaluator, batchdata: Mapping[str, Any]) -> Any:
        self.n_cases += 1
        if _FAILURE in batchdata:
            self.failures.add(Failure(*(batchdata[name][0] for name in (*Failure._fields[:-1], _FAILURE))))
        else:
            with self.failures.catching(batchdata, "score"):
                return super()._iteration(engine, batchdata)
        engine.state.batch = []
        return []


def _forget(engine: GuardedEvaluator) -> None:
    """Let go of the last case before the next is read: volumes and their maps are large."""
    engine.state.batch = engine.state.output = None
    gc.collect()  # they are in circles of references, which Python would look for some cases later
    if engine.n_cases == 1:
        gc.freeze()  # modules that readers load with the first case; looking through them costs more than a 2D image


def failure_of(item: Mapping[Any, Any], stage: str, error: Exception) -> Failure:
    """What is known of a failure, with the message of the error below those that MONAI wraps it in.

    Args:
        item: of a datalist, or a batch of one case, with "case" and "image".
        stage: what was done with it, in a word.
        error: that came.

    Returns:
        The record.
    """
    image = item.get("image", "")
    if isinstance(image, MetaTensor):
        image = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")
    file = ", ".join(str(path) for path in ensure_tuple(image))
    case = ", ".join(str(name) for name in ensure_tuple(item.get("case", file)))
    return Failure(case, file, stage, describe_error(error))


def _first_line(message: str) -> str:
    return next((line.strip() for line in message.splitlines() if line.strip()), "")

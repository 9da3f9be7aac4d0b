"""Errors as a user reads them: what lies below MONAI's wrapping, and cases that fail while the others go on."""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aeflow_monai import progress
from aeflow_monai.printable import first_line, shown
from aeflow_monai.result_tables import Table

__all__ = [
    "CaseFailures",
    "Failure",
    "FailureLog",
    "describe_error",
    "failure_of",
    "file_of",
    "is_disk_error",
    "root_cause",
    "unwrapped",
]

_logger = logging.getLogger(__name__)

# A disk that is full, over quota or read-only fails every case from now on; so does a limit on the size of files.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# torch writes files by itself, and has no number for what failed.
_TORCH_WRITES = ("PytorchStreamWriter", "inline_container.cc")
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
        >>> failures.finish()
        >>> print(Path(failures.path).read_text(), end="")
        case,file,stage,message
        b,b.nii.gz,read,It is empty.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.table: Table | None = None
        self.failures: list[Failure] = []

    def __len__(self) -> int:
        return len(self.failures)

    def start(self) -> None:
        """Forget the failures of an earlier run; its table stays until this one ends."""
        self.failures = []
        self.table = None

    def finish(self) -> None:
        """Give the table its name, or take away an earlier one: all cases have been seen."""
        if self.table is not None:
            self.table.finish()
            self.table = None
        elif self.path is not None and not self.failures:
            self.path.unlink(missing_ok=True)

    def add(self, failure: Failure) -> None:
        """Write one failure to the table and to the log."""
        self.failures.append(failure)
        if self.path is not None:
            self.table = self.table or Table(self.path, Failure._fields)
            self.table.append({**failure._asdict(), "message": " ".join(failure.message.split())})
        progress.case({"state": "failed", **failure._asdict(), "results": str(self.path.parent) if self.path else ""})
        _logger.warning(f"Case {shown(failure.case)} failed: {shown(first_line(failure.message))}")

    @contextmanager
    def catching(self, item: Mapping[Any, Any], stage: str) -> Iterator[None]:
        """Catch an error of this case, and note it; raise errors of the disk, which would fail every case.

        Args:
            item: of a datalist, or a batch of one case, with "case" and "image".
            stage: what is done with it, in a word.
        """
        try:
            yield
        except Exception as error:
            if is_disk_error(root_cause(error)):
                raise
            self.add(failure_of(item, stage, error))

    def raise_if_any(self, n_cases: int, remedy: str = "") -> None:
        """End a run in which cases failed with an error, when all that could be written is.

        Args:
            n_cases: how many there were, with those that failed.
            remedy: what the user can do, in a line.

        Raises:
            CaseFailures: names each case with its file and what is wrong.
        """
        self.finish()
        if not self.failures:
            return
        count = len(self.failures)
        what = f"All {n_cases} cases" if count == n_cases else f"{count} of {n_cases} cases"
        lines = [f"{what if n_cases > 1 else 'The only case'} failed:"]
        for failure in self.failures[:_MAX_LISTED]:
            reason = first_line(failure.message)
            where = failure.stage if failure.file in reason else f"{failure.file}, {failure.stage}"
            lines.append(shown(f"- {failure.case} ({where}): {reason}"))
        if count > _MAX_LISTED:
            lines.append(f"- and {count - _MAX_LISTED} more")
        if self.path is not None:
            others = f"The outputs of the other {n_cases - count} are in {self.path.parent.absolute()}. "
            lines.append(f"{others if count < n_cases else ''}{self.path.absolute()} lists all that failed.")
        raise CaseFailures("\n".join([*lines, remedy] if remedy else lines))


def failure_of(item: Mapping[Any, Any], stage: str, error: Exception) -> Failure:
    """What is known of a failure, with the message of the error below those that MONAI wraps it in.

    Args:
        item: of a datalist, or a batch of one case, with "case" and "image".
        stage: what was done with it, in a word.
        error: that came.

    Returns:
        The record.
    """
    from monai.data import MetaTensor  # which a command that scores nothing does without
    from monai.utils import ensure_tuple

    image = item.get("image", "")
    file = file_of(image) if isinstance(image, MetaTensor) else ", ".join(str(path) for path in ensure_tuple(image))
    case = ", ".join(str(name) for name in ensure_tuple(item.get("case", file)))
    return Failure(case, file, stage, describe_error(error))


def file_of(image: Any, default: object = "") -> str:
    """The file that an image was loaded from, for an error to name.

    Args:
        image: a `MetaTensor`, or a batch of one; anything else has no file.
        default: what to call an image without a file.
    """
    from monai.data import MetaTensor
    from monai.utils import ImageMetaKey, ensure_tuple

    file = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(image, MetaTensor) else None
    return ", ".join(str(path) for path in ensure_tuple(file)) if file else str(default)


def root_cause(error: BaseException) -> BaseException:
    """The error that MONAI wrapped in others of its own, as it does for transforms and expressions.

    Args:
        error: as it was caught.

    Returns:
        The first error below that MONAI has not raised itself; not deeper, where the message may explain less.
    """
    while (deeper := error.__cause__ or error.__context__) is not None and _is_raised_by_monai(error):
        error = deeper
    return error


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise an error as it began, without those that MONAI wraps it in.

    Example:
        >>> from monai.bundle import ConfigParser
        >>> with unwrapped():
        ...     ConfigParser({"number": "$1 / 0"}).get_parsed_content("number")
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
    """
    try:
        yield
    except Exception as error:
        cause = root_cause(error)
        if cause is error:
            raise
        raise cause from cause.__cause__


def describe_error(error: BaseException) -> str:
    """What an error says, without what MONAI wrapped it in.

    Args:
        error: as it was caught.

    Returns:
        The message of its `root_cause`, with the type before it where the message alone says too little.

    Example:
        >>> describe_error(ValueError("It is empty.")), describe_error(KeyError("image"))
        ('It is empty.', "KeyError: 'image'")
    """
    cause = root_cause(error)
    message, kind = str(cause).strip(), type(cause).__name__
    if message and isinstance(cause, (ValueError, RuntimeError, OSError)):
        return message
    return f"{kind}: {message}" if message else kind


def is_disk_error(cause: BaseException) -> bool:
    """Whether a disk that is full, over quota or read-only, or a limit on the size of files, made this error.

    Args:
        cause: see `root_cause`.

    Example:
        >>> is_disk_error(OSError(errno.ENOSPC, "No space left on device")), is_disk_error(OSError("no image"))
        (True, False)
    """
    if isinstance(cause, OSError):
        return cause.errno in _DISK_ERRORS
    return isinstance(cause, RuntimeError) and any(name in str(cause) for name in _TORCH_WRITES)


def _is_raised_by_monai(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] == "monai"

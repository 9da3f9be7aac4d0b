"""Errors for the user: causes below MONAI's wrapping, and failed cases of a run that continues."""

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

# A full, over-quota or read-only disk fails every further case; so does a limit on the size of files.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# torch writes files by itself, and its errors have no number.
_TORCH_WRITES = ("PytorchStreamWriter", "inline_container.cc")
# Lines of a summary; the table has all of them.
_MAX_LISTED = 20


class CaseFailures(RuntimeError):
    """Some cases failed; the others were processed and written."""


class Failure(NamedTuple):
    """A failed case: its name and file, the stage in which it failed, and the error message."""

    case: str
    file: str
    stage: str
    message: str


class FailureLog:
    """Log of failed cases: a table that is written as they occur, a warning for each, an error at the end.

    Args:
        path: path of the table, with the columns case, file, stage and message; no table is written without failures,
            or if this is None.

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
        """Reset the failures; the table of an earlier run stays until this one ends."""
        self.failures = []
        self.table = None

    def finish(self) -> None:
        """Rename the table, or delete that of an earlier run, after all cases."""
        if self.table is not None:
            self.table.finish()
            self.table = None
        elif self.path is not None and not self.failures:
            self.path.unlink(missing_ok=True)

    def add(self, failure: Failure) -> None:
        """Add a failure to the table and to the log."""
        self.failures.append(failure)
        if self.path is not None:
            self.table = self.table or Table(self.path, Failure._fields)
            self.table.append({**failure._asdict(), "message": " ".join(failure.message.split())})
        progress.case({"state": "failed", **failure._asdict(), "results": str(self.path.parent) if self.path else ""})
        _logger.warning(f"Case {shown(failure.case)} failed: {shown(first_line(failure.message))}")

    @contextmanager
    def catching(self, item: Mapping[Any, Any], stage: str) -> Iterator[None]:
        """Catch an error of this case, and log it; raise errors of the disk, which would fail every case.

        Args:
            item: an item of a datalist, or a batch of one case, with "case" and "image".
            stage: the processing stage, in a word.
        """
        try:
            yield
        except Exception as error:
            if is_disk_error(root_cause(error)):
                raise
            self.add(failure_of(item, stage, error))

    def raise_if_any(self, n_cases: int, remedy: str = "") -> None:
        """Raise an error at the end of a run in which cases failed.

        Args:
            n_cases: number of cases, including failed ones.
            remedy: what the user can do, in a line.

        Raises:
            CaseFailures: names each case with its file and error.
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
    """Describe a failure, with the message of the error that MONAI has wrapped.

    Args:
        item: an item of a datalist, or a batch of one case, with "case" and "image".
        stage: the processing stage, in a word.
        error: the error that was caught.

    Returns:
        The record of the failure.
    """
    from monai.data import MetaTensor  # not needed by commands that score nothing
    from monai.utils import ensure_tuple

    image = item.get("image", "")
    file = file_of(image) if isinstance(image, MetaTensor) else ", ".join(str(path) for path in ensure_tuple(image))
    case = ", ".join(str(name) for name in ensure_tuple(item.get("case", file)))
    return Failure(case, file, stage, describe_error(error))


def file_of(image: Any, default: object = "") -> str:
    """Return the file that an image was loaded from, for an error message.

    Args:
        image: a `MetaTensor`, or a batch of one; anything else has no file.
        default: value for an image without a file.
    """
    from monai.data import MetaTensor
    from monai.utils import ImageMetaKey, ensure_tuple

    file = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(image, MetaTensor) else None
    return ", ".join(str(path) for path in ensure_tuple(file)) if file else str(default)


def root_cause(error: BaseException) -> BaseException:
    """Return the error that MONAI wrapped in its own errors, as it does for transforms and expressions.

    Args:
        error: the error that was caught.

    Returns:
        The first error in the chain that MONAI has not raised itself; not deeper ones, which may explain less.
    """
    while (deeper := error.__cause__ or error.__context__) is not None and _is_raised_by_monai(error):
        error = deeper
    return error


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the original error, without those that MONAI wraps it in.

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
    """Return the message of an error, without MONAI's wrapping.

    Args:
        error: the error that was caught.

    Returns:
        The message of its `root_cause`, preceded by the type if the message alone is not informative.

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
    """Return whether a full, over-quota or read-only disk, or a limit on the size of files, caused this error.

    Args:
        cause: the error, see `root_cause`.

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

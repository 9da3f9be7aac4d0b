"""End of a failed command with one short message."""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path
from types import TracebackType

from aeflow_monai.about import PACKAGE
from aeflow_monai.errors import describe_error, is_disk_error, root_cause

__all__ = ["end_with_one_message", "is_foreseen", "message_of"]

_STOPPED = 130  # exit code of a shell for a process that Ctrl-C stopped


def end_with_one_message(output_dir: str | None = None) -> None:
    """Install a hook so that an uncaught error ends this process with its message, without MONAI's traceback.

    Unforeseen errors keep their traceback above the message.

    Args:
        output_dir: folder of the results, which the message names if the disk is full.
    """

    def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stdout.flush()  # so that the message comes last in a log of both streams
        if isinstance(error, KeyboardInterrupt):
            print("\nThe run was stopped.", file=sys.stderr)
            raise SystemExit(_STOPPED)
        if not is_foreseen(root_cause(error)):
            sys.__excepthook__(kind, error, trace)
        print(f"\nThe run failed: {message_of(error, output_dir)}", file=sys.stderr)

    sys.excepthook = explain


def message_of(error: BaseException, output_dir: str | None = None) -> str:
    """Return the message for the user.

    Args:
        error: the error that was caught.
        output_dir: folder of the results, which the message names if the disk is full and the error names no file.

    Example:
        >>> import errno
        >>> message_of(OSError(errno.ENOSPC, "No space left on device"), "/data/RUN")
        'No space left on device: /data/RUN. Free space there, or give another folder with --output_dir.'
    """
    cause = root_cause(error)
    if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG and cause.filename:
        return f"{cause.strerror}: {cause.filename}. Give a shorter one."
    if not is_disk_error(cause):
        return describe_error(error)
    # torch does not distinguish the two
    what = (cause.strerror if isinstance(cause, OSError) else None) or "No space left, or a limit on the size of files"
    where = getattr(cause, "filename", None) or output_dir
    there = where and output_dir and not Path(where).absolute().is_relative_to(Path(output_dir).absolute())
    with_option = "" if there else " with --output_dir"  # it may be the cache folder
    return f"{what}{f': {where}' if where else ''}. Free space there, or give another folder{with_option}."


def is_foreseen(cause: BaseException) -> bool:
    """Return whether this package raised an error for a user to read, or the system did."""
    frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
    raised_here = bool(frames) and Path(frames[-1].f_code.co_filename).is_relative_to(PACKAGE)
    is_of_ours = type(cause).__module__.partition(".")[0] == "aeflow_monai"
    return (
        is_disk_error(cause)
        or is_of_ours
        or isinstance(cause, OSError)
        or (raised_here and isinstance(cause, (ValueError, ModuleNotFoundError)))
    )

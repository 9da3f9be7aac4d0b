"""The server's log: one line per event, without file names unless the level is DEBUG."""

from __future__ import annotations

import logging

from aeflow_monai.label.background import is_task
from aeflow_monai.printable import shown

__all__ = ["keep_log_discreet"]

# Loggers whose lines name no files; lines of MONAI Label and of image readers do.
_DISCREET = ("aeflow_monai", "uvicorn")


def keep_log_discreet() -> None:
    """Log each message on one line, without file names unless the level is DEBUG; no effect in a task's process."""
    if is_task():  # its lines become the task's status
        return
    has_details = logging.getLogger().level <= logging.DEBUG
    if not has_details:
        logging.captureWarnings(True)  # otherwise printed, with any file names
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if not has_details:
            handler.addFilter(_is_discreet)
        handler.addFilter(_on_one_line)


def _is_discreet(record: logging.LogRecord) -> bool:
    """Drop lines that may name files; of errors keep type and location, without message and traceback."""
    is_foreign = record.name.partition(".")[0] not in _DISCREET
    if is_foreign and record.levelno < logging.ERROR:
        return False
    kind = record.exc_info[0] if record.exc_info else None
    if (is_foreign or kind) and "is_cut" not in record.__dict__:  # already cut by the filter of another handler
        what = f"{kind.__name__} in" if kind else "An error of"
        record.msg = f"{what} {record.module}, line {record.lineno}. Start with --log-level DEBUG to see more."
        record.args, record.exc_info, record.exc_text, record.stack_info = (), None, None, None
        record.__dict__["is_cut"] = True
    return True


def _on_one_line(record: logging.LogRecord) -> bool:
    """Escape line breaks and non-printable characters."""
    message = record.getMessage()
    if (escaped := shown(message)) != message:
        record.msg, record.args = escaped, ()
    return True

"""What the server's log says: one line per event, and no file names unless it is asked for details."""

from __future__ import annotations

import logging

from aeflow_monai.label.names import not_printed

__all__ = ["keep_log_discreet"]

# Whose lines name no files. Those of MONAI Label and of readers do; those of a task's process are in its status.
_DISCREET = ("aeflow_monai", "uvicorn")


def keep_log_discreet() -> None:
    """Have each message on one line, and leave file names out unless the level is DEBUG."""
    has_details = logging.getLogger().level <= logging.DEBUG
    if not has_details:
        logging.captureWarnings(True)  # which else are printed, whatever they name
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        handler.addFilter(_on_one_line)
        if not has_details:
            handler.addFilter(_is_discreet)


def _is_discreet(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.partition(".")[0] in _DISCREET


def _on_one_line(record: logging.LogRecord) -> bool:
    """Escape what would begin a new line, or is not printed."""
    message = record.getMessage()
    if not_printed(message):
        record.msg, record.args = "".join(_escaped(char) for char in message), ()
    return True


def _escaped(char: str) -> str:
    return ascii(char)[1:-1] if not_printed(char) else char

"""The command `aeflow`: finds the verb, runs it, and gives an exit code."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence

from aeflow_monai.cli.bundle_run import quiet_log
from aeflow_monai.cli.parsers import parser
from aeflow_monai.cli.terminal import Terminal

__all__ = ["main"]

# Options of the configs, as they are called here.
_OWN_WORDS = (
    (r" with --dataset_dir( <\w+>)?", " behind the verb"),
    (r"--dataset_dir", "the images behind the verb"),
    (r"--output_dir", "-o"),
    (r"--overwrite True", "--overwrite"),
    (r"--resume \S+\.pt", "--resume"),
)
SOME_FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; those of the process if None.

    Returns:
        The exit code: 0; 1 if some cases failed or the run broke off; 2 for wrong use, of which nothing came; 130 if
        it was interrupted.
    """
    given = parser().parse_args(arguments)
    terminal = Terminal(quiet=given.quiet, verbose=given.verbose, as_json=getattr(given, "json", False))
    try:
        module, function = given.run.split(":")
        with quiet_log(terminal):
            getattr(importlib.import_module(f"aeflow_monai.cli.{module}"), function)(given, terminal)
    except KeyboardInterrupt:
        terminal.stopped()
        return INTERRUPTED
    except Exception as error:
        return _failed(error, terminal)
    return 0


def _failed(error: Exception, terminal: Terminal) -> int:
    """Say what went wrong, in few lines, and give the exit code."""
    from aeflow_monai.engine.failure_message import is_foreseen, message_of
    from aeflow_monai.errors import CaseFailures, root_cause

    cause = root_cause(error)
    if terminal.verbose or not is_foreseen(cause):
        terminal.traceback()
    terminal.error(_in_own_words(message_of(error)))
    wrong_use = isinstance(cause, (ValueError, FileNotFoundError, ModuleNotFoundError))
    return SOME_FAILED if isinstance(cause, CaseFailures) or not wrong_use else WRONG_USE


def _in_own_words(message: str) -> str:
    """A message about options of the configs, with those of this command."""
    for pattern, own in _OWN_WORDS:
        message = re.sub(pattern, own, message)
    return message


if __name__ == "__main__":
    sys.exit(main())

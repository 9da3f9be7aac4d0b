"""The command `aeflow`: find the verb, run it, and return an exit code."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from aeflow_monai.cli.standard_streams import flush_streams, has_reader_left

if TYPE_CHECKING:
    from aeflow_monai.cli.terminal import Terminal

__all__ = ["main"]

# Threads that wait for each other spin, and keep others from running: beside three trainings a fourth took 14 times as
# long as alone. With this it takes 5 times as long, and alone no longer than before (benchmarks/busy_cores.py).
_WAITING = ("GOMP_SPINCOUNT", "1000")
SOME_FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: command-line arguments; those of the process if None.

    Returns:
        The exit code: 0; 1 if some cases failed or the run was aborted; 2 for an invalid command line, with nothing
        written; 130 if it was interrupted.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*_WAITING)  # set before torch, which reads it at its first import
    with _interrupts() as interrupts:
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments), interrupts)
        except KeyboardInterrupt:  # before the terminal exists
            print("Interrupted. Nothing was begun.", file=sys.stderr)
            return INTERRUPTED
        except OSError as error:
            if not has_reader_left(error):
                raise
            return 0  # the reader of the help has closed the pipe
        finally:
            flush_streams()


def _run(arguments: list[str], interrupts: list[int]) -> int:
    # imported within main, since Ctrl-C may come meanwhile
    from aeflow_monai.cli.bundle_run import quiet_log
    from aeflow_monai.cli.given_paths import WrongUse
    from aeflow_monai.cli.parsers import parser
    from aeflow_monai.cli.terminal import Terminal

    if not arguments:
        parser().print_help(sys.stderr)
        return WRONG_USE
    given = parser().parse_args(arguments)
    command = shlex.join(["aeflow", *arguments])
    terminal = Terminal(given.quiet, given.verbose, getattr(given, "json", False), command)
    try:
        module, function = given.run.split(":")
        with quiet_log(terminal):
            getattr(importlib.import_module(f"aeflow_monai.cli.{module}"), function)(given, terminal)
    except KeyboardInterrupt:
        terminal.stopped()
        return INTERRUPTED
    except WrongUse as error:
        terminal.error(str(error))
        return WRONG_USE
    except Exception as error:
        if interrupts:  # a library has turned Ctrl-C into an error, or ignored it and failed later
            terminal.stopped()
            return INTERRUPTED
        return _failed(error, terminal)
    return 0


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Record the signals of Ctrl-C, since libraries ignore some and fail later."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_usual or threading.current_thread() is not threading.main_thread():
        yield came
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _failed(error: Exception, terminal: Terminal) -> int:
    """Report an error in a few lines, and return the exit code."""
    from aeflow_monai.engine.config.failure_message import is_foreseen, message_of
    from aeflow_monai.errors import CaseFailures, root_cause

    cause = root_cause(error)
    if terminal.verbose or not is_foreseen(cause):
        terminal.traceback()
    message = message_of(error)
    if isinstance(cause, CaseFailures):  # the summary has already named the first
        first, *_, last = message.splitlines()
        message = f"{first.removesuffix(':')}. {last}"
    terminal.error(message)
    wrong_use = isinstance(cause, (ValueError, FileNotFoundError, NotADirectoryError, ModuleNotFoundError))
    return SOME_FAILED if isinstance(cause, CaseFailures) or not wrong_use else WRONG_USE


if __name__ == "__main__":
    sys.exit(main())

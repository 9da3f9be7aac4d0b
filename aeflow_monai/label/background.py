"""Background tasks: checks before they start, and a link to the server that started them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from monailabel.utils.async_tasks.task import AsyncTask

__all__ = ["call_later", "check_before_start", "is_orphan", "is_task", "note_server"]

_logger = logging.getLogger(__name__)

_SERVER = "AEFLOW_LABEL_SERVER"
_run = AsyncTask.run  # MONAI Label's own, without the check of an app


def check_before_start(check: Callable[[str, Mapping[str, Any]], None]) -> None:
    """Check each task before MONAI Label starts a process for it.

    An error in the process of a task appears only in the task's status, and MONAI Label has no hook for an earlier
    check. All its endpoints call `AsyncTask.run`, so the check is inserted there, for the whole server process.

    Args:
        check: called with "train", "scoring" or "batch_infer" and the request; raises the error for the client.
    """

    def checked(
        method: str,
        request: dict[str, Any] | None = None,
        params: dict[str, Any] | None = None,
        force_sync: bool = False,
        enqueue: bool = False,
    ) -> Any:
        check(method, {**(request or {}), **(params or {})})
        _logger.info(f"A task of {method} is asked for.")
        return _run(method, request, params, force_sync, enqueue)

    AsyncTask.run = staticmethod(checked)


def call_later(seconds: float, function: Callable[[], object]) -> None:
    """Call a function in a thread that does not keep the process alive.

    Args:
        seconds: delay from now.
        function: function to call.
    """
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()


def note_server() -> None:
    """Mark this process as the server of all processes that it will start."""
    os.environ[_SERVER] = str(os.getpid())


def is_task() -> bool:
    """Whether this is the process of a task that a server started."""
    return os.environ.get(_SERVER, str(os.getpid())) != str(os.getpid())


def is_orphan() -> bool:
    """Whether this is the process of a task whose server has ended, so that nobody waits for its result."""
    server = os.environ.get(_SERVER)
    return server is not None and int(server) not in (os.getpid(), os.getppid())

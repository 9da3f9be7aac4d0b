"""Background tasks: checked before they start, and tied to the server that started them."""

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
_run = AsyncTask.run  # before any app has put its check in front of it


def check_before_start(check: Callable[[str, Mapping[str, Any]], None]) -> None:
    """Have each task checked before MONAI Label starts a process for it.

    What a process of its own finds wrong is seen in the task's status alone, and MONAI Label asks nobody before: all
    its endpoints call `AsyncTask.run`, so the check is put there, for the whole process.

    Args:
        check: called with "train", "scoring" or "batch_infer" and the request; raises what the client is told.
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
        seconds: from now.
        function: to call.
    """
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()


def note_server() -> None:
    """Tell the processes that this one will start that it is their server."""
    os.environ[_SERVER] = str(os.getpid())


def is_task() -> bool:
    """Whether this is the process of a task that a server began."""
    return os.environ.get(_SERVER, str(os.getpid())) != str(os.getpid())


def is_orphan() -> bool:
    """Whether this is the process of a task whose server is gone, so that nobody waits for it any more."""
    server = os.environ.get(_SERVER)
    return server is not None and int(server) not in (os.getpid(), os.getppid())

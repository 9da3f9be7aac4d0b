"""Checks on requested background tasks, so that those that cannot succeed are refused before they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.utils.async_tasks.utils import tasks

from aeflow_monai.label.models import ModelStore
from aeflow_monai.label.names import quoted
from aeflow_monai.label.options import check_batch_options, check_known, device_of
from aeflow_monai.label.requests.answers import readable_errors

__all__ = ["TaskCheck", "require_known", "waiting_tasks"]

_QUEUE = {"scoring": 8}  # most tasks in the queue, including the running one; 1 for other kinds


@dataclass(frozen=True)
class TaskCheck:
    """A check that refuses background tasks that cannot succeed.

    Args:
        infers: infer tasks by name.
        trainers: train tasks by name.
        scoring_methods: scoring methods by name.
        models: model store; its newest version is used.
        datastore: returns the datastore of the images.
    """

    infers: Mapping[str, Any]
    trainers: Mapping[str, Any]
    scoring_methods: Mapping[str, Any]
    models: ModelStore
    datastore: Callable[[], Datastore]

    def __call__(self, method: str, request: Mapping[str, Any]) -> None:
        """Check one request.

        Args:
            method: "train", "scoring" or "batch_infer".
            request: request for the task.

        Raises:
            HTTPException: the task, image or model does not exist, an option is invalid, or the queue is full.
        """
        with readable_errors():
            check_known(method, request, self.trainers if method == "train" else self.scoring_methods)
            if len(waiting_tasks(method)) >= _QUEUE.get(method, 1):
                raise HTTPException(
                    429, detail=f"A task of {method} runs or waits. Wait for its end, or stop it (DELETE)."
                )
            if method == "train":
                require_known("model", request, self.trainers)
                self.trainers[request["model"]].check(request, self.datastore())
                return
            if method == "scoring":
                require_known("method", request, self.scoring_methods)
                device_of(request)
            else:
                require_known("model", request, self.infers)
                check_batch_options(request, self.datastore().list_images())
            self.models.require()


def waiting_tasks(method: str) -> list[dict[str, Any]]:
    """Return the requests of the running and queued tasks.

    Args:
        method: "train", "scoring" or "batch_infer".
    """
    return [dict(task["request"]) for task in tasks(method) if task["status"] in ("SUBMITTED", "RUNNING")]


def require_known(kind: str, request: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a request for an unknown model or method.

    Args:
        kind: "model" or "method".
        request: request that names one.
        known: known ones by name.

    Raises:
        HTTPException: lists the known names.
    """
    name = request.get(kind)
    if name not in known:
        raise HTTPException(404, detail=f"There is no {kind} {quoted(name)}. Choose one of {', '.join(known)}.")

"""Batch inference that continues after a failed image and stores scores for the worklist."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from aeflow_monai.label.models import ModelStore
from aeflow_monai.label.requests.answers import message_of
from aeflow_monai.label.studies.records import failure_record, score_record, store

__all__ = ["GuardedBatchInfer"]

_logger = logging.getLogger(__name__)


class GuardedBatchInfer(BatchInferTask):  # type: ignore[misc]
    """MONAI Label's batch inference, which continues after a failed image and stores the scores.

    Args:
        models: model store; its newest version is used.
    """

    def __init__(self, models: ModelStore) -> None:
        self.models = models

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """Run inference on all images of the request, and save the results as labels "original".

        Args:
            request: see `monailabel.interfaces.tasks.batch_infer.BatchInferTask`.
            datastore: datastore of the images.
            infer: runs inference on one image.

        Returns:
            For each image the result of `infer`, or "error" with the cause.
        """
        version = self.models.require()

        def guarded(one: dict[str, Any], store_of: Datastore) -> dict[str, Any]:
            image = one["image"]
            try:
                answer = infer(one, store_of)
            except Exception as error:  # fails this image only
                record = failure_record(message_of(error), version)
                _logger.warning("An image failed, the others go on; its info says which, and why.")
                _logger.debug(f"{image} failed: {record['anomaly_error']}")
                answer = {"error": record["anomaly_error"]}
            else:
                record = score_record(answer["params"])
            store(store_of, image, record)
            return answer

        # MONAI Label would divide by the number of GPUs
        several = bool(request.get("multi_gpu", True)) and torch.cuda.device_count() > 0
        return super().__call__({**request, "multi_gpu": several}, datastore, guarded)  # type: ignore[no-any-return]

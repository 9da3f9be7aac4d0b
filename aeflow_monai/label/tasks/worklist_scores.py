"""The scoring method behind the worklist: it stores the newest model's anomaly score of each image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from aeflow_monai.label.requests.answers import message_of
from aeflow_monai.label.studies.records import failure_record, score_record, store
from aeflow_monai.label.tasks.inference import AnomalyInferTask

__all__ = ["AnomalyScoring"]

_logger = logging.getLogger(__name__)


class AnomalyScoring(ScoringMethod):  # type: ignore[misc]
    """A scoring method that stores "anomaly_score" in the info of each image not yet scored by the newest model.

    Args:
        task: infer task that scores an image.
    """

    def __init__(self, task: AnomalyInferTask) -> None:
        super().__init__("Anomaly score of each image, by the newest model")
        self.task = task

    def is_stale(self, datastore: Datastore) -> bool:
        """Return whether there is a model, and an image that it has not scored.

        Args:
            datastore: datastore of the images.
        """
        return bool(self._waiting(datastore))

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score the images that have no current score.

        Args:
            request: "device", optional; "force" scores all images again.
            datastore: datastore of the images.

        Returns:
            The score of each image scored now; None if it failed, with the cause in its info.

        Raises:
            FileNotFoundError: there is no model yet.
        """
        version = self.task.pipeline.models.require()
        images = list(datastore.list_images()) if request.get("force") else self._waiting(datastore)
        scores: dict[str, Any] = {}
        for number, image in enumerate(images, start=1):
            try:
                wanted = {"image": datastore.get_image_uri(image), "skip_writer": True, "logging": "WARNING"}
                _, data = self.task({**wanted, "device": request.get("device")})
                record = score_record({**data["result"], "model_version": data["model_version"]})
            except Exception as error:  # one failed image must not keep the others out of the worklist
                record = failure_record(message_of(error), version)
                _logger.warning("An image has no score, the others go on; its info says which, and why.")
                _logger.debug(f"{image} has no score: {record['anomaly_error']}")
            store(datastore, image, record)
            scores[image] = record["anomaly_score"]
            _logger.info(f"Scored {number} of {len(images)}.")
        return scores

    def _waiting(self, datastore: Datastore) -> list[str]:
        newest = self.task.pipeline.models.newest()
        if newest is None:
            return []
        images = sorted(datastore.list_images())
        return [image for image in images if datastore.get_image_info(image).get("anomaly_model") != newest]

"""Active learning strategies, which choose the next image for a reader."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from aeflow_monai.label.models import ModelStore

__all__ = ["MostAnomalous", "NearestThreshold", "Worklist"]

_DAY = 24 * 60 * 60


class Worklist(Strategy):  # type: ignore[misc]
    """Serve the images without a final label in the order of their scores.

    An image that was served is not served again while others wait, or until `again_after` seconds have passed; then the
    one served longest ago comes first. Images without a score follow those with one, and images that cannot be scored
    come last.

    Args:
        description: one sentence, shown by the viewer.
        models: model store; its newest version scores.
        again_after: seconds after which an image that was served but not labelled counts as not served.
    """

    def __init__(self, description: str, models: ModelStore, again_after: float = _DAY) -> None:
        super().__init__(description)
        self.models = models
        self.again_after = again_after

    @abstractmethod
    def urgency(self, score: float, threshold: float) -> float:
        """Return the urgency of an image; the largest is served first.

        Args:
            score: score of the case.
            threshold: case threshold of the model that scored it.

        Returns:
            The urgency, in the unit of the scores.
        """

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose the next image.

        Args:
            request: "strategy", the name under which this strategy was requested.
            datastore: datastore of the images and their info.

        Returns:
            Its "id"; "waiting", the number of images without a final label; "unscored", how many of these the newest
            model has not scored yet; "sorted", true if there are none; otherwise a "notice". None if all have a label.
        """
        datastore.refresh()  # scores are written by another process
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        now = time.time()

        def order(image: str) -> tuple[float, int, float, str]:
            info = datastore.get_image_info(image)
            served = info.get("strategy", {}).get(request["strategy"], {}).get("ts", 0)
            served = served if now - served < self.again_after else 0
            score, threshold = info.get("anomaly_score"), info.get("anomaly_case_threshold")
            if score is None or threshold is None:
                return (served, 2 if info.get("anomaly_error") else 1, 0.0, image)
            return (served, 0, -self.urgency(score, threshold), image)

        newest = self.models.newest()
        unscored = [image for image in images if datastore.get_image_info(image).get("anomaly_model") != newest]
        n_unscored = len(images) if newest is None else len(unscored)
        answer = {"id": min(images, key=order), "waiting": len(images)}
        return {**answer, "unscored": n_unscored, "sorted": not n_unscored, **_notice(n_unscored, len(images), newest)}


def _notice(n_unscored: int, n_waiting: int, newest: int | None) -> dict[str, str]:
    if not n_unscored:
        return {}
    why = "there is no model yet" if newest is None else f"model version {newest} has not scored them"
    return {"notice": f"The worklist is not sorted yet: {n_unscored} of {n_waiting} images wait for a score; {why}."}


class MostAnomalous(Worklist):
    """Strategy `most_anomalous`: the highest score first.

    Args:
        models: model store; its newest version scores.
    """

    def __init__(self, models: ModelStore) -> None:
        super().__init__("The most anomalous image that has no final label", models)

    def urgency(self, score: float, threshold: float) -> float:
        """Return the score itself."""
        return score


class NearestThreshold(Worklist):
    """Strategy `nearest_threshold`: the case whose normality is least certain first.

    Args:
        models: model store; its newest version scores.
    """

    def __init__(self, models: ModelStore) -> None:
        super().__init__("The image whose score is nearest to the threshold, of those that have no final label", models)

    def urgency(self, score: float, threshold: float) -> float:
        """Return the negative distance of the score from the threshold."""
        return -abs(score - threshold)

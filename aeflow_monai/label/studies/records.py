"""What the datastore keeps of a case's score, beside its image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import ImageNotFoundException

from aeflow_monai.files import read_json
from aeflow_monai.result_files import PLACE_COLUMNS

__all__ = ["failure_record", "read_report", "score_record", "store"]

_logger = logging.getLogger(__name__)


def score_record(result: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of an image's info that a score becomes.

    Args:
        result: of an infer task.

    Returns:
        "anomaly_score", "anomaly_prediction", "anomaly_case_threshold", "anomaly_p_value"; of the most anomalous slice
        "anomaly_plane", "anomaly_axis", "anomaly_slice_from_0" and "anomaly_position_mm", None for a 2D image;
        "anomaly_model" (version) and an "anomaly_error" of None.
    """
    most = result["most_anomalous_slice"] or {}
    return {
        "anomaly_score": result["anomaly_score"],
        "anomaly_prediction": result["prediction"],
        "anomaly_case_threshold": result["case_threshold"],
        "anomaly_p_value": result["p_value"],
        **{f"anomaly_{name}": most.get(name) for name in PLACE_COLUMNS},
        "anomaly_model": result["model_version"],
        "anomaly_error": None,
    }


def failure_record(message: str, model_version: int) -> dict[str, Any]:
    """The entries of an image's info if it cannot be scored.

    Args:
        message: what is wrong with it.
        model_version: of the model that was to score it; the next one tries again.

    Returns:
        "anomaly_error" and "anomaly_model", and None for an earlier score.
    """
    return {"anomaly_score": None, "anomaly_error": message, "anomaly_model": model_version}


def store(datastore: Datastore, image_id: str, record: Mapping[str, Any]) -> None:
    """Keep a record with its image.

    Args:
        datastore: where to.
        image_id: of the image.
        record: entries of its info, which replace those of the same name; of an image that was removed meanwhile none.
    """
    # The datastore writes its file as a whole, and the server writes it too: take in what it wrote meanwhile. Its
    # refresh() does that and looks at every file of the studies, which is too much for each of their scores.
    getattr(datastore, "_init_from_datastore_file", datastore.refresh)()
    with suppress(ImageNotFoundException):
        datastore.update_image_info(image_id, dict(record))


def read_report(path: str | Path) -> dict[str, Any]:
    """A report that is made anew when it is missing.

    Args:
        path: of a JSON file that this app wrote.

    Returns:
        Its content; empty if there is none, or if it is damaged.
    """
    try:
        content: Any = read_json(path)
    except (ValueError, OSError):
        _warn_of(Path(path).name)
        return {}
    return content if isinstance(content, dict) else {}


@cache
def _warn_of(name: str) -> None:
    """Once, since viewers ask for reports with every request."""
    _logger.warning(f"{name} cannot be read, so it counts as missing until it is made anew.")

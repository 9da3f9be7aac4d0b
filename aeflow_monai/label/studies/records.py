"""Records of case scores in the info of images in the datastore."""

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
    """Return the entries of an image's info for a score.

    Args:
        result: result of an infer task.

    Returns:
        "anomaly_score", "anomaly_prediction", "anomaly_case_threshold", "anomaly_p_value"; for the most anomalous slice
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
    """Return the entries of an image's info if it cannot be scored.

    Args:
        message: the cause.
        model_version: version of the model that failed; the next version tries again.

    Returns:
        "anomaly_error" and "anomaly_model", with None for the entries of an earlier score.
    """
    return {"anomaly_score": None, "anomaly_error": message, "anomaly_model": model_version}


def store(datastore: Datastore, image_id: str, record: Mapping[str, Any]) -> None:
    """Store a record in the info of its image.

    Args:
        datastore: datastore of the image.
        image_id: name of the image.
        record: entries of its info, which replace those of the same name; ignored if the image has been removed.
    """
    # The datastore rewrites its whole file, and the server writes it too, so reload it first. refresh() would also list
    # every file of the studies, which is too slow for each score.
    getattr(datastore, "_init_from_datastore_file", datastore.refresh)()
    with suppress(ImageNotFoundException):
        datastore.update_image_info(image_id, dict(record))


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report; a missing or damaged one will be made again.

    Args:
        path: path of a JSON file that this app wrote.

    Returns:
        Its content; empty if it is missing or damaged.
    """
    try:
        content: Any = read_json(path)
    except (ValueError, OSError):
        _warn_of(Path(path).name)
        return {}
    return content if isinstance(content, dict) else {}


@cache
def _warn_of(name: str) -> None:
    """Warn once, since viewers request reports all the time."""
    _logger.warning(f"{name} cannot be read, so it counts as missing until it is made anew.")

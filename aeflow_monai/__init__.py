"""AE-Flow anomaly detection for medical images and volumes. Research use only, not a medical device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aeflow_monai.about import DISCLAIMER, __version__

if TYPE_CHECKING:
    from aeflow_monai.data import Slicer, load_datalist, write_phantom
    from aeflow_monai.engine import (
        Detector,
        Model,
        Prediction,
        SlicedInferer,
        Workflow,
        calibrate,
        config_files,
        predict,
    )
    from aeflow_monai.network import AEFlow, Encoder
    from aeflow_monai.score import Score

__all__ = [
    "DISCLAIMER",
    "AEFlow",
    "Detector",
    "Encoder",
    "Model",
    "Prediction",
    "Score",
    "SlicedInferer",
    "Slicer",
    "Workflow",
    "__version__",
    "calibrate",
    "config_files",
    "load_datalist",
    "predict",
    "write_phantom",
]

# Where these names are. They are imported when they are first used: torch and MONAI take seconds, and the command's
# help needs neither.
_WINGS = {
    **dict.fromkeys(("Slicer", "load_datalist", "write_phantom"), "data"),
    **dict.fromkeys(("Detector", "Model", "Prediction", "SlicedInferer", "Workflow"), "engine"),
    **dict.fromkeys(("calibrate", "config_files", "predict"), "engine"),
    **dict.fromkeys(("AEFlow", "Encoder"), "network"),
    "Score": "score",
}
# Parts of the package that configs name.
_PARTS = ("data", "engine", "errors", "files", "geometry", "label", "marks", "metrics", "network", "output", "score")


def __getattr__(name: str) -> Any:
    if name in _WINGS:
        return getattr(importlib.import_module(f"aeflow_monai.{_WINGS[name]}"), name)
    if name in _PARTS:
        return importlib.import_module(f"aeflow_monai.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})

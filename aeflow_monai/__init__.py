"""AE-Flow anomaly detection for medical images and volumes. Research use only, not a medical device."""

from aeflow_monai.about import DISCLAIMER, __version__
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

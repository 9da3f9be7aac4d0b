"""AE-Flow anomaly detection for medical images and volumes. Research use only, not a medical device."""

from aeflow_monai.aeflow import AEFlow, AEFlowOutput
from aeflow_monai.calibration import calibrate
from aeflow_monai.datalist import find_images, load_datalist, require_labels, split_normals
from aeflow_monai.decoder import Decoder
from aeflow_monai.encoder import Encoder
from aeflow_monai.flow import LatentFlow
from aeflow_monai.handlers import (
    CalibratedModelSaver,
    DetectionReport,
    DivergenceGuard,
    PictureLogger,
    RequireCalibration,
    ScoreWriter,
)
from aeflow_monai.loss import AEFlowLoss
from aeflow_monai.overlay import WriteOverlayd
from aeflow_monai.phantom import write_phantom, write_phantom_slices
from aeflow_monai.profile import WriteProfiled
from aeflow_monai.scoring import AnomalyScorer, MapScorer
from aeflow_monai.slices import FeatureDataset, SliceDataset, prepare_slice_batch
from aeflow_monai.transforms import EnsureVolumed, MaskMapd, MatchChannelsd, ScoreMapd
from aeflow_monai.version import __version__
from aeflow_monai.workflow import (
    announce,
    bundle_root,
    check_config,
    explain_errors,
    home,
    keep_freed_memory,
    require_checkpoint,
)
from aeflow_monai.writers import WriteMapsd

__all__ = [
    "AEFlow",
    "AEFlowLoss",
    "AEFlowOutput",
    "AnomalyScorer",
    "CalibratedModelSaver",
    "Decoder",
    "DetectionReport",
    "DivergenceGuard",
    "Encoder",
    "EnsureVolumed",
    "FeatureDataset",
    "LatentFlow",
    "MapScorer",
    "MaskMapd",
    "MatchChannelsd",
    "PictureLogger",
    "RequireCalibration",
    "ScoreMapd",
    "ScoreWriter",
    "SliceDataset",
    "WriteMapsd",
    "WriteOverlayd",
    "WriteProfiled",
    "__version__",
    "announce",
    "bundle_root",
    "calibrate",
    "check_config",
    "explain_errors",
    "find_images",
    "home",
    "keep_freed_memory",
    "load_datalist",
    "prepare_slice_batch",
    "require_checkpoint",
    "require_labels",
    "split_normals",
    "write_phantom",
    "write_phantom_slices",
]

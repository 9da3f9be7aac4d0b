"""AE-Flow anomaly detection for medical images and volumes. Research use only, not a medical device."""

from aeflow_monai.aeflow import AEFlow, AEFlowOutput
from aeflow_monai.alongside import Alongside
from aeflow_monai.calibration import calibrate, recalibrate
from aeflow_monai.checks import CheckImaged
from aeflow_monai.datalist import (
    choose_abnormal,
    find_images,
    load_datalist,
    normals_of,
    require_labels,
    split_normals,
)
from aeflow_monai.decoder import Decoder
from aeflow_monai.encoder import Encoder
from aeflow_monai.evaluation import DetectionReport, LocalisationReport, ScoreWriter
from aeflow_monai.flow import LatentFlow
from aeflow_monai.guard import CaseFailures, FailureLog, GuardedDataset, GuardedEvaluator
from aeflow_monai.handlers import CalibratedModelSaver, DivergenceGuard, PictureLogger, RequireCalibration
from aeflow_monai.inferer import SlicedInferer
from aeflow_monai.labelled import LabelledSampler, LabelledSlices
from aeflow_monai.lesions import LesionSlices, RandLesiond
from aeflow_monai.loading import LoadCased
from aeflow_monai.localisation import LesionMetrics, VoxelMetrics, format_localisation, slice_report
from aeflow_monai.loss import AEFlowLoss, MixtureLoss
from aeflow_monai.maps import MapScorer
from aeflow_monai.overlay import WriteOverlayd
from aeflow_monai.phantom import write_phantom, write_phantom_slices
from aeflow_monai.position import PositionNorm
from aeflow_monai.prepare import prepare_data
from aeflow_monai.prior import MixturePrior
from aeflow_monai.profile import WriteProfiled
from aeflow_monai.scoring import AnomalyScorer
from aeflow_monai.slices import FeatureDataset, SliceDataset, SomeCases, prepare_slice_batch
from aeflow_monai.slicing import Places, Slicer
from aeflow_monai.transforms import EnsureVolumed, MaskMapd, MatchChannelsd, ScaleForegroundd, ScoreMapd
from aeflow_monai.varied import VariedSlices
from aeflow_monai.version import __version__
from aeflow_monai.viewer import ViewerInferer, ViewerResultd
from aeflow_monai.workflow import (
    announce,
    bundle_root,
    check_config,
    explain_errors,
    home,
    keep_freed_memory,
    require_checkpoint,
    require_place,
)
from aeflow_monai.writers import WriteMapsd

__all__ = [
    "AEFlow",
    "AEFlowLoss",
    "AEFlowOutput",
    "Alongside",
    "AnomalyScorer",
    "CalibratedModelSaver",
    "CaseFailures",
    "CheckImaged",
    "Decoder",
    "DetectionReport",
    "DivergenceGuard",
    "Encoder",
    "EnsureVolumed",
    "FailureLog",
    "FeatureDataset",
    "GuardedDataset",
    "GuardedEvaluator",
    "LabelledSampler",
    "LabelledSlices",
    "LatentFlow",
    "LesionMetrics",
    "LesionSlices",
    "LoadCased",
    "LocalisationReport",
    "MapScorer",
    "MaskMapd",
    "MatchChannelsd",
    "MixtureLoss",
    "MixturePrior",
    "PictureLogger",
    "Places",
    "PositionNorm",
    "RandLesiond",
    "RequireCalibration",
    "ScaleForegroundd",
    "ScoreMapd",
    "ScoreWriter",
    "SliceDataset",
    "SlicedInferer",
    "Slicer",
    "SomeCases",
    "VariedSlices",
    "ViewerInferer",
    "ViewerResultd",
    "VoxelMetrics",
    "WriteMapsd",
    "WriteOverlayd",
    "WriteProfiled",
    "__version__",
    "announce",
    "bundle_root",
    "calibrate",
    "check_config",
    "choose_abnormal",
    "explain_errors",
    "find_images",
    "format_localisation",
    "home",
    "keep_freed_memory",
    "load_datalist",
    "normals_of",
    "prepare_data",
    "prepare_slice_batch",
    "recalibrate",
    "require_checkpoint",
    "require_labels",
    "require_place",
    "slice_report",
    "split_normals",
    "write_phantom",
    "write_phantom_slices",
]

"""From anomaly maps of slices to calibrated scores, independent of the network."""

from aeflow_monai.score.calibration import calibrate_score
from aeflow_monai.score.global_term import GlobalTerm
from aeflow_monai.score.held_out import HeldOutScores
from aeflow_monai.score.normal_slices import NormalSlices, PooledSlices
from aeflow_monai.score.pooled_features import pooled_features
from aeflow_monai.score.position import PositionNorm
from aeflow_monai.score.score import Score, SliceScores
from aeflow_monai.score.ssim import ssim_map
from aeflow_monai.score.stack import SliceStack, foreground_of
from aeflow_monai.score.thresholds import upper_threshold

__all__ = [
    "GlobalTerm",
    "HeldOutScores",
    "NormalSlices",
    "PooledSlices",
    "PositionNorm",
    "Score",
    "SliceScores",
    "SliceStack",
    "calibrate_score",
    "foreground_of",
    "pooled_features",
    "ssim_map",
    "upper_threshold",
]

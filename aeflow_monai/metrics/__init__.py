"""Metrics of scores and maps, by case, slice, lesion and voxel."""

from aeflow_monai.metrics.baselines import intensity_statistics
from aeflow_monai.metrics.detection import detection_report, format_report
from aeflow_monai.metrics.lesions import LesionMetrics
from aeflow_monai.metrics.paired import paired_report
from aeflow_monai.metrics.slices import slice_report
from aeflow_monai.metrics.text import format_localisation
from aeflow_monai.metrics.voxels import VoxelMetrics

__all__ = [
    "LesionMetrics",
    "VoxelMetrics",
    "detection_report",
    "format_localisation",
    "format_report",
    "intensity_statistics",
    "paired_report",
    "slice_report",
]

"""How well anomaly maps find lesions: voxel by voxel, lesion by lesion, and slice by slice."""

from aeflow_monai.localisation.lesions import LesionMetrics
from aeflow_monai.localisation.report import format_localisation
from aeflow_monai.localisation.slices import slice_report
from aeflow_monai.localisation.voxels import VoxelMetrics

__all__ = ["LesionMetrics", "VoxelMetrics", "format_localisation", "slice_report"]

"""From files to the slices that a network sees, and back to the grid of a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aeflow_monai.imports import on_first_use

if TYPE_CHECKING:
    from aeflow_monai.data.checks import CheckImaged
    from aeflow_monai.data.datalist import (
        choose_abnormal,
        find_images,
        load_datalist,
        normals_of,
        require_labels,
        split_normals,
    )
    from aeflow_monai.data.feature_dataset import FeatureDataset, prepare_slice_batch
    from aeflow_monai.data.guarded_dataset import GuardedDataset
    from aeflow_monai.data.labelled import LabelledSampler, LabelledSlices
    from aeflow_monai.data.phantom import write_phantom, write_phantom_slices
    from aeflow_monai.data.prepare import prepare_data
    from aeflow_monai.data.readers import LoadCased
    from aeflow_monai.data.slice_dataset import SliceDataset, SomeCases
    from aeflow_monai.data.slicer import Slicer
    from aeflow_monai.data.synthetic_lesions import LesionSlices, RandLesiond
    from aeflow_monai.data.transforms import EnsureVolumed, MatchChannelsd, ScaleForegroundd
    from aeflow_monai.data.varied_slices import RandAcquisitiond, VariedSlices

__all__ = [
    "CheckImaged",
    "EnsureVolumed",
    "FeatureDataset",
    "GuardedDataset",
    "LabelledSampler",
    "LabelledSlices",
    "LesionSlices",
    "LoadCased",
    "MatchChannelsd",
    "RandAcquisitiond",
    "RandLesiond",
    "ScaleForegroundd",
    "SliceDataset",
    "Slicer",
    "SomeCases",
    "VariedSlices",
    "choose_abnormal",
    "find_images",
    "load_datalist",
    "normals_of",
    "prepare_data",
    "prepare_slice_batch",
    "require_labels",
    "split_normals",
    "write_phantom",
    "write_phantom_slices",
]

if not TYPE_CHECKING:  # or mypy would take any name
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "checks": ["CheckImaged"],
            "datalist": [
                "choose_abnormal",
                "find_images",
                "load_datalist",
                "normals_of",
                "require_labels",
                "split_normals",
            ],
            "feature_dataset": ["FeatureDataset", "prepare_slice_batch"],
            "guarded_dataset": ["GuardedDataset"],
            "labelled": ["LabelledSampler", "LabelledSlices"],
            "phantom": ["write_phantom", "write_phantom_slices"],
            "prepare": ["prepare_data"],
            "readers": ["LoadCased"],
            "slice_dataset": ["SliceDataset", "SomeCases"],
            "slicer": ["Slicer"],
            "synthetic_lesions": ["LesionSlices", "RandLesiond"],
            "transforms": ["EnsureVolumed", "MatchChannelsd", "ScaleForegroundd"],
            "varied_slices": ["RandAcquisitiond", "VariedSlices"],
        },
    )

"""Detectors at work: training, evaluation and inference, and the bundle that a training writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aeflow_monai.imports import on_first_use

if TYPE_CHECKING:
    from aeflow_monai.engine.card import CardWriter
    from aeflow_monai.engine.command_line import given_config, path_of
    from aeflow_monai.engine.config import Workflow, bundle_root
    from aeflow_monai.engine.detector import Detector, calibrate
    from aeflow_monai.engine.evaluation import DetectionReport, LocalisationReport, ScoreWriter
    from aeflow_monai.engine.evaluator import GuardedEvaluator
    from aeflow_monai.engine.fixed_options import own_model
    from aeflow_monai.engine.inferer import SlicedInferer
    from aeflow_monai.engine.model import Model, Prediction, predict
    from aeflow_monai.engine.recalibration import recalibrate
    from aeflow_monai.engine.report_pictures import ReportPicturesd
    from aeflow_monai.engine.report_writer import ReportWriter
    from aeflow_monai.engine.run_folders import begin_results, model_folder, run_folder
    from aeflow_monai.engine.run_record import RunRecord
    from aeflow_monai.engine.stacked_maps import StackMapsd
    from aeflow_monai.engine.template import config_files
    from aeflow_monai.engine.training import BundleWriter, Checkpoints, DivergenceGuard, PictureLogger
    from aeflow_monai.engine.training_progress import TrainingProgress
    from aeflow_monai.engine.verbs import (
        announce,
        announce_results,
        begin_calibration,
        begin_scoring,
        begin_training,
        cache_folder,
        claim_training,
        end_training,
        lesion_copies,
        number_of_epochs,
        require_fitting,
    )

__all__ = [
    "BundleWriter",
    "CardWriter",
    "Checkpoints",
    "DetectionReport",
    "Detector",
    "DivergenceGuard",
    "GuardedEvaluator",
    "LocalisationReport",
    "Model",
    "PictureLogger",
    "Prediction",
    "ReportPicturesd",
    "ReportWriter",
    "RunRecord",
    "ScoreWriter",
    "SlicedInferer",
    "StackMapsd",
    "TrainingProgress",
    "Workflow",
    "announce",
    "announce_results",
    "begin_calibration",
    "begin_results",
    "begin_scoring",
    "begin_training",
    "bundle_root",
    "cache_folder",
    "calibrate",
    "claim_training",
    "config_files",
    "end_training",
    "given_config",
    "lesion_copies",
    "model_folder",
    "number_of_epochs",
    "own_model",
    "path_of",
    "predict",
    "recalibrate",
    "require_fitting",
    "run_folder",
]

if not TYPE_CHECKING:  # or mypy would take any name
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "card": ["CardWriter"],
            "command_line": ["given_config", "path_of"],
            "config": ["Workflow", "bundle_root"],
            "detector": ["Detector", "calibrate"],
            "evaluation": ["DetectionReport", "LocalisationReport", "ScoreWriter"],
            "evaluator": ["GuardedEvaluator"],
            "fixed_options": ["own_model"],
            "inferer": ["SlicedInferer"],
            "model": ["Model", "Prediction", "predict"],
            "recalibration": ["recalibrate"],
            "report_pictures": ["ReportPicturesd"],
            "report_writer": ["ReportWriter"],
            "run_folders": ["begin_results", "model_folder", "run_folder"],
            "run_record": ["RunRecord"],
            "stacked_maps": ["StackMapsd"],
            "template": ["config_files"],
            "training": ["BundleWriter", "Checkpoints", "DivergenceGuard", "PictureLogger"],
            "training_progress": ["TrainingProgress"],
            "verbs": [
                "announce",
                "announce_results",
                "begin_calibration",
                "begin_scoring",
                "begin_training",
                "cache_folder",
                "claim_training",
                "end_training",
                "lesion_copies",
                "number_of_epochs",
                "require_fitting",
            ],
        },
    )

"""Calibration of a trained model on normals of another site: a new bundle, without training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from monai.utils import ensure_tuple

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.bundles.bundle import write_bundle
from aeflow_monai.engine.bundles.card import facts_of_data
from aeflow_monai.engine.config.fixed_options import require_own_config
from aeflow_monai.engine.config.stored_model import model_path
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.inference.detector import Detector, calibrate
from aeflow_monai.engine.inference.picture_warning import note_on_normals, require_volumes
from aeflow_monai.engine.runs.duplicates import count_seen, fingerprints_for, require_several_images, warn_of_duplicates
from aeflow_monai.engine.runs.run_record import describe_run, finish_record, hashes_of
from aeflow_monai.files import write_json
from aeflow_monai.locks import release_folder
from aeflow_monai.printable import some
from aeflow_monai.result_files import RUN_RECORD
from aeflow_monai.score.held_out import rounding_of

__all__ = ["recalibrate"]

_logger = logging.getLogger(__name__)


def recalibrate(
    folder: str | Path,
    given: GivenConfig | None,
    detector: Detector,
    batches: Iterable[Mapping[str, Any]],
    data: Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    specificity: float = 0.95,
    slicer: Slicer | None = None,
) -> None:
    """Recalibrate a trained model on normals like the images to be scored, and write it as a new bundle.

    Args:
        folder: folder of the model's bundle.
        given: config of the run, see `require_own_config`.
        detector: detector of the model's config, into which its state is loaded.
        batches: normals that it was not trained on, see `calibrate`.
        data: datalist of the normals.
        output_dir: folder of the new bundle.
        specificity: see `calibrate`.
        slicer: see `calibrate`; used if the model scores volumes by the mean of several planes' maps.

    Raises:
        ValueError: some of the normals were trained on, or are 2D images for a model of volumes, or all are duplicates
            of one image.
    """
    stored = require_own_config(folder, given)
    require_volumes(stored.state, data)
    fingerprints = fingerprints_for(stored.card, data)
    if n_seen := count_seen(fingerprints, stored.card["trained_on"]):
        raise ValueError(
            f"{n_seen} of {len(data)} images were trained on: thresholds of images that the model knows are too low. "
            "Give normal images that it has not seen."
        )
    require_several_images(data, fingerprints)
    warn_of_duplicates(data, fingerprints)
    record = Path(output_dir, "logs", RUN_RECORD)
    if given is not None:  # first of all, so that the folder of a killed run can be recognised
        write_json(record, {**describe_run(given), "model": {"file": str(model_path(folder))}})
    detector.load_state_dict(dict(stored.state))
    # a model that scores each plane separately continues to do so, whichever version wrote its bundle
    is_of_mean = bool(stored.state.get("score.of_mean_map", False))
    scores = calibrate(detector, batches, specificity, slicer=slicer if is_of_mean else None)
    _say_highest(scores, float(detector.score.case_threshold), data)
    if note := note_on_normals(stored.state, detector.state_dict()):
        _logger.warning(note)
    facts = {**stored.card["data"], **facts_of_data(calibrated_on=data)}
    card = {**stored.card, "data": facts, "specificity": specificity, "thresholds_on": fingerprints}
    write_bundle(output_dir, detector, {**stored.config, "specificity": specificity}, card)
    if given is not None:
        finish_record(record, calibrated_on=[*map(hashes_of, data)])
    release_folder(output_dir)


def _say_highest(scores: Mapping[str, float], threshold: float, data: Sequence[Mapping[str, Any]]) -> None:
    """Log the normals that set the threshold: one of them may be abnormal, which nothing else would show."""
    cases = {str(path): str(item["case"]) for item in data for path in ensure_tuple(item["image"])}
    # the score of the normal that sets the threshold lies below it by rounding
    highest = {file: score for file, score in scores.items() if score >= threshold - 2 * rounding_of(threshold)}
    told = some([f"{cases.get(file, file)} {highest[file]:.2f}" for file in sorted(highest, key=lambda f: -highest[f])])
    _logger.warning(
        f"At the threshold of {threshold:.2f} or above it: {told}; the median of all {len(scores)} normals is "
        f"{median(scores.values()):.2f}. Look whether these are normal: abnormal images among them make the threshold "
        "too high."
    )

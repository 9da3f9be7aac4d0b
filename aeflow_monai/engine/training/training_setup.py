"""Derived options and checks before a training: number of epochs and copies, image size, unused data."""

from __future__ import annotations

import logging
import math

from aeflow_monai.data.datalist.unused import Datalist
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.inference.detector import Detector

__all__ = ["lesion_copies", "number_of_epochs", "report_notes", "require_fitting"]

_logger = logging.getLogger(__name__)


def number_of_epochs(epochs: int | None, n_slices: int, batch_size: int, min_steps: int = 170, copies: int = 0) -> int:
    """Return the number of epochs: enough to show each slice 4 times and for `min_steps` batches, at most 200.

    Args:
        epochs: the given number; None to derive it.
        n_slices: number of normal slices of the training.
        batch_size: batch size of the training.
        min_steps: least number of batches of normal slices.
        copies: copies of each normal slice in an epoch.

    Example:
        >>> number_of_epochs(None, 1600, 16), number_of_epochs(None, 80, 16), number_of_epochs(3, 80, 16)
        (4, 34, 3)
        >>> number_of_epochs(None, 1600, 16, copies=1)
        2
    """
    if epochs is not None:
        return epochs
    shown = n_slices * (1 + copies)
    return max(math.ceil(4 / (1 + copies)), min(200, math.ceil(min_steps * batch_size / shown)))


def lesion_copies(copies: int | None, n_slices: int, least: int = 500) -> int:
    """Return the number of copies of each training slice with synthetic lesions: 1, or up to 10 if slices are few.

    Args:
        copies: the given number; None to derive it.
        n_slices: number of normal slices of the training.
        least: least number of copies with lesions in total.

    Example:
        >>> lesion_copies(None, 1600), lesion_copies(None, 80), lesion_copies(0, 80)
        (1, 7, 0)
    """
    return max(1, min(10, math.ceil(least / n_slices))) if copies is None else copies


def report_notes(normals: Datalist, given: GivenConfig | None) -> None:
    """Warn of data that a training does not use, and of options without effect.

    Args:
        normals: the images to train on.
        given: config of the run; with `labelled_abnormal` the training uses abnormal images too.
    """
    for about, note in normals.notes.items():
        if about != "abnormal" or given is None or "labelled_abnormal" not in given.content:
            _logger.warning(note)


def require_fitting(detector: Detector, slicer: Slicer) -> None:
    """Raise an error if the network cannot take images of this size, before any image is read.

    Args:
        detector: detector of the config.
        slicer: slicer of the config.

    Raises:
        ValueError: rows or columns are not multiples of the encoder's largest stride.
    """
    stride = detector.network.encoder.strides[-1]
    if any(size % stride for size in slicer.image_size):
        near = [max(stride, round(size / stride) * stride) for size in slicer.image_size]
        raise ValueError(
            f"image_size: expected multiples of {stride}, the largest stride of the encoder's stages; got "
            f"{list(slicer.image_size)}. The nearest are {near}."
        )

"""Duplicates: one image under several names among normals, each of which counts as a patient."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from aeflow_monai.data.datalist.item import patient_of
from aeflow_monai.engine.card import count_seen
from aeflow_monai.printable import some

__all__ = ["require_several_images", "warn_of_duplicates"]

_logger = logging.getLogger(__name__)


def warn_of_duplicates(
    held_out: Sequence[Mapping[str, Any]], fingerprints: Sequence[str], trained_on: Sequence[str] = ()
) -> None:
    """Say which of the normals that thresholds are set on are duplicates, byte for byte.

    Args:
        held_out: datalist of these normals.
        fingerprints: of its images, see `fingerprints_of`.
        trained_on: fingerprints of the images that are trained on.
    """
    if n_seen := count_seen(fingerprints, trained_on):
        _logger.warning(
            f"{n_seen} of {len(held_out)} held-out normals are duplicates of images that are trained on. Thresholds of "
            "images that the model knows are too low. Take the duplicates out."
        )
    if duplicates := _of_other_patients(held_out, fingerprints):
        _logger.warning(
            f"{len(duplicates)} of {len(held_out)} normals that thresholds are set on are duplicates of others: "
            f"{some(duplicates)}. Each counts as a patient of its own, so that the thresholds are less certain than is "
            "said. Take the duplicates out, or name their patient in a list."
        )


def require_several_images(held_out: Sequence[Mapping[str, Any]], fingerprints: Sequence[str]) -> None:
    """Refuse normals that are one image under the names of several patients.

    Args:
        held_out: datalist of the normals that thresholds are set on.
        fingerprints: of its images, see `fingerprints_of`.

    Raises:
        ValueError: they are.
    """
    if len({*fingerprints}) == 1 and _of_other_patients(held_out, fingerprints):
        raise ValueError(
            f"Expected normal images of different patients to set thresholds on; got {len(held_out)} duplicates of one "
            f"image: {some([item['case'] for item in held_out])}. Give other images too."
        )


def _of_other_patients(held_out: Sequence[Mapping[str, Any]], fingerprints: Sequence[str]) -> list[str]:
    """Cases whose image stands earlier under another patient."""
    first: dict[str, str] = {}
    return [
        str(item["case"])
        for item, fingerprint in zip(held_out, fingerprints, strict=True)
        if fingerprint and first.setdefault(fingerprint, patient_of(item)) != patient_of(item)
    ]

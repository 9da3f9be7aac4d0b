"""Duplicates: one image under several names, each of which counts: among normals as a patient, in a test as a case."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from aeflow_monai.data.datalist.item import image_files_of, patient_of
from aeflow_monai.file_digests import digest_of, unpacked_digest_of
from aeflow_monai.printable import some

__all__ = [
    "FORM",
    "count_seen",
    "fingerprints_for",
    "fingerprints_of",
    "notes_on_duplicates",
    "require_several_images",
    "warn_of_duplicates",
]

_logger = logging.getLogger(__name__)

FORM = {"fingerprints": "unpacked"}  # what the card of a model says of those that it has


def fingerprints_of(items: Sequence[Mapping[str, Any]], unpacked: bool = True) -> list[str]:
    """Beginning of the SHA-256 of each image's bytes, one per item, which tells whether it is seen again.

    Args:
        items: a datalist; of an image in several files, or in a folder of DICOM files, all count. An item without any
            file has an empty fingerprint.
        unpacked: of a .gz file the bytes inside, so that `.nii` and `.nii.gz` are the same.
    """
    found = []
    digest = unpacked_digest_of if unpacked else digest_of
    for item in items:
        try:
            digests = [digest(file) for file in image_files_of(item)]
        except OSError:  # the case failed for it
            digests = []
        found.append(hashlib.sha256("".join(digests).encode()).hexdigest()[:16] if digests else "")
    return found


def fingerprints_for(card: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fingerprints of images as the card of a model has them; an earlier version packed none out."""
    return fingerprints_of(items, unpacked=FORM.items() <= card.items())


def count_seen(fingerprints: Sequence[str], known: Sequence[str]) -> int:
    """How many images are among those that are known, by the fingerprints of both."""
    of_files = {*known} - {""}
    return sum(fingerprint in of_files for fingerprint in fingerprints)


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


def notes_on_duplicates(tested: Sequence[Mapping[str, Any]], fingerprints: Sequence[str]) -> list[str]:
    """Say which test images are duplicates, byte for byte, and which of them are both normal and abnormal.

    Args:
        tested: datalist of the test, with labels.
        fingerprints: of its images, see `fingerprints_of`.

    Returns:
        Sentences without folders; none if all is well.

    Example:
        >>> tested = [{"case": "a", "label": 0}, {"case": "b", "label": 1}]
        >>> for note in notes_on_duplicates(tested, ["3f2a", "3f2a"]):
        ...     print(note)
        1 of 2 test images are duplicates of others: b. Each counts as a case.
        1 test image is called normal under one name and abnormal under another: b. One of the labels is wrong.
    """
    labels: dict[str, set[Any]] = {}
    duplicates, contradicted = [], []
    for item, fingerprint in zip(tested, fingerprints, strict=True):
        if not fingerprint:
            continue
        known = labels.setdefault(fingerprint, set())
        if known:
            duplicates.append(str(item["case"]))
            if item["label"] not in known:
                contradicted.append(str(item["case"]))
        known.add(item["label"])
    notes = []
    if duplicates:
        notes.append(
            f"{len(duplicates)} of {len(tested)} test images are duplicates of others: {some(duplicates)}. Each counts "
            "as a case."
        )
    if contradicted:
        are = "image is" if len(contradicted) == 1 else "images are"
        notes.append(
            f"{len(contradicted)} test {are} called normal under one name and abnormal under another: "
            f"{some(contradicted)}. One of the labels is wrong."
        )
    return notes


def _of_other_patients(held_out: Sequence[Mapping[str, Any]], fingerprints: Sequence[str]) -> list[str]:
    """Cases whose image stands earlier under another patient."""
    first: dict[str, str] = {}
    return [
        str(item["case"])
        for item, fingerprint in zip(held_out, fingerprints, strict=True)
        if fingerprint and first.setdefault(fingerprint, patient_of(item)) != patient_of(item)
    ]

"""Detection of duplicates: one image under several names, each of which would count as a patient or case."""

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

FORM = {"fingerprints": "unpacked"}  # form of the fingerprints in a model's card


def fingerprints_of(items: Sequence[Mapping[str, Any]], unpacked: bool = True) -> list[str]:
    """Return a fingerprint of each image's bytes, one per item: the beginning of their SHA-256.

    Args:
        items: a datalist; all files count for an image of several files or a folder of DICOM files. An item without a
            file has an empty fingerprint.
        unpacked: for a .gz file hash the decompressed bytes, so that `.nii` and `.nii.gz` are the same.
    """
    found = []
    digest = unpacked_digest_of if unpacked else digest_of
    for item in items:
        try:
            digests = [digest(file) for file in image_files_of(item)]
        except OSError:  # the case failed because of it
            digests = []
        found.append(hashlib.sha256("".join(digests).encode()).hexdigest()[:16] if digests else "")
    return found


def fingerprints_for(card: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return fingerprints in the form of a model's card; earlier versions did not decompress files."""
    return fingerprints_of(items, unpacked=FORM.items() <= card.items())


def count_seen(fingerprints: Sequence[str], known: Sequence[str]) -> int:
    """Return the number of images that are known, by their fingerprints."""
    of_files = {*known} - {""}
    return sum(fingerprint in of_files for fingerprint in fingerprints)


def warn_of_duplicates(
    held_out: Sequence[Mapping[str, Any]], fingerprints: Sequence[str], trained_on: Sequence[str] = ()
) -> None:
    """Warn of byte-for-byte duplicates among the normals that thresholds are set on.

    Args:
        held_out: datalist of these normals.
        fingerprints: fingerprints of its images, see `fingerprints_of`.
        trained_on: fingerprints of the training images.
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
    """Raise an error if all normals are one image under the names of several patients.

    Args:
        held_out: datalist of the normals that thresholds are set on.
        fingerprints: fingerprints of its images, see `fingerprints_of`.

    Raises:
        ValueError: they are all the same image.
    """
    if len({*fingerprints}) == 1 and _of_other_patients(held_out, fingerprints):
        raise ValueError(
            f"Expected normal images of different patients to set thresholds on; got {len(held_out)} duplicates of one "
            f"image: {some([item['case'] for item in held_out])}. Give other images too."
        )


def notes_on_duplicates(tested: Sequence[Mapping[str, Any]], fingerprints: Sequence[str]) -> list[str]:
    """Describe byte-for-byte duplicates among test images, and those that are labelled both normal and abnormal.

    Args:
        tested: datalist of the test, with labels.
        fingerprints: fingerprints of its images, see `fingerprints_of`.

    Returns:
        Sentences without folders; none without duplicates.

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
    """Return cases whose image occurs earlier for another patient."""
    first: dict[str, str] = {}
    return [
        str(item["case"])
        for item, fingerprint in zip(held_out, fingerprints, strict=True)
        if fingerprint and first.setdefault(fingerprint, patient_of(item)) != patient_of(item)
    ]

"""Readers' final labels: an empty one marks a normal image, any other shows where the image is abnormal."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from monai.data import MetaTensor
from monailabel.interfaces.datastore import Datastore

from aeflow_monai.data.readers import LoadCased
from aeflow_monai.errors import describe_error

__all__ = ["MARKED_NORMAL", "LabelledImage", "labelled_images", "load_label"]

# Key of an image's info: true if the reader submitted an empty label that the datastore cannot store.
MARKED_NORMAL = "marked_normal"
_UNKNOWN = "UNK"  # MONAI Label's value for a missing DICOM element


class LabelledImage(NamedTuple):
    """An image with a final label.

    Args:
        case: the image's name in the datastore.
        patient: a number for each patient if the datastore has a PatientID (DICOM), which is never written anywhere;
            else the case.
        image: path of the image.
        label: path of the label; empty if the image is marked normal without one.
    """

    case: str
    patient: str
    image: str
    label: str

    @property
    def normal(self) -> bool:
        """Whether the label is empty or absent; a label is read to decide."""
        return not self.label or not bool(load_label(self.label).any())


@lru_cache(maxsize=1)
def _loader() -> LoadCased:
    # one instance, since each new one warns of MONAI's missing readers
    return LoadCased("lesion")


def labelled_images(datastore: Datastore) -> list[LabelledImage]:
    """Return all images with a final label, or marked normal without one, sorted by case.

    Args:
        datastore: datastore of images and labels.

    Returns:
        One entry per image.
    """
    pairs = datastore.datalist()
    labels = {pair["image"]: pair["label"] for pair in pairs}
    found, patients = [], dict[str, str]()
    for case in datastore.get_labeled_images():
        image, info = datastore.get_image_uri(case), datastore.get_image_info(case)
        label = "" if info.get(MARKED_NORMAL) else labels.get(image)
        if label is None:
            continue  # removed since
        known = str(info.get("PatientID") or _UNKNOWN)
        patient = case if known == _UNKNOWN else patients.setdefault(known, f"patient {len(patients) + 1}")
        found.append(LabelledImage(case, patient, image, label))
    return sorted(found)


def load_label(path: str) -> MetaTensor:
    """Read a label as a binary mask, as masks are read everywhere.

    Args:
        path: path of the file.

    Returns:
        (1, X, Y[, Z]), 1 where the reader drew and 0 elsewhere.

    Raises:
        ValueError: the file cannot be read, or is not a mask.
    """
    try:
        label: Any = _loader()({"lesion": path})["lesion"]
    except Exception as error:  # readers raise various errors
        raise ValueError(
            f"Expected a label in {path}; it cannot be read: {describe_error(error)} Submit the label again, or remove "
            "it."
        ) from error
    return label

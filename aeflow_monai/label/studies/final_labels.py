"""What readers' final labels say: an empty one marks a normal image, any other shows where it is abnormal."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from monai.data import MetaTensor
from monailabel.interfaces.datastore import Datastore

from aeflow_monai.data.readers import LoadCased
from aeflow_monai.errors import describe_error

__all__ = ["MARKED_NORMAL", "LabelledImage", "labelled_images", "load_label"]

# In an image's info: true where a datastore cannot keep the empty label that a reader submitted.
MARKED_NORMAL = "marked_normal"
_UNKNOWN = "UNK"  # as MONAI Label notes a DICOM element that is not there


class LabelledImage(NamedTuple):
    """An image with a final label.

    Args:
        case: the image's name in the datastore.
        patient: tells images of one patient from others, where the datastore knows (DICOM), by a number, since a
            PatientID is written nowhere; else the case.
        image: path of the image.
        label: path of the label; empty if the image is marked normal without one.
    """

    case: str
    patient: str
    image: str
    label: str

    @property
    def normal(self) -> bool:
        """Whether the label is empty, or there is none; it is read for that."""
        return not self.label or not bool(load_label(self.label).any())


@lru_cache(maxsize=1)
def _loader() -> LoadCased:
    # MONAI says of each new one again which of its readers are missing
    return LoadCased("lesion")


def labelled_images(datastore: Datastore) -> list[LabelledImage]:
    """All images with a final label, or marked normal without one, sorted by case.

    Args:
        datastore: with images and labels.

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
            continue  # it was removed since
        known = str(info.get("PatientID") or _UNKNOWN)
        patient = case if known == _UNKNOWN else patients.setdefault(known, f"patient {len(patients) + 1}")
        found.append(LabelledImage(case, patient, image, label))
    return sorted(found)


def load_label(path: str) -> MetaTensor:
    """A label, as a mask is read everywhere: binary, whatever its values are.

    Args:
        path: of the file.

    Returns:
        (1, X, Y[, Z]), 1 where the reader drew and 0 elsewhere.

    Raises:
        ValueError: it cannot be read, or not be understood as a mask.
    """
    try:
        label: Any = _loader()({"lesion": path})["lesion"]
    except Exception as error:  # a reader's, whichever was tried last
        raise ValueError(
            f"Expected a label in {path}; it cannot be read: {describe_error(error)} Submit the label again, or remove "
            "it."
        ) from error
    return label

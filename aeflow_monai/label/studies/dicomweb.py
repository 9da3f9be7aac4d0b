"""A DICOMweb datastore in which an empty final label is possible: that is how a reader marks a normal case."""

from __future__ import annotations

import shutil
from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException

from aeflow_monai.label.names import quoted
from aeflow_monai.label.studies.final_labels import MARKED_NORMAL, load_label
from aeflow_monai.label.studies.submissions import check_label
from aeflow_monai.label.temporary import removing_upload

__all__ = ["AnomalyDicomDatastore", "require_converter"]

_CONVERTER = "itkimage2segimage"  # of dcmqi


class AnomalyDicomDatastore(DICOMWebDatastore):  # type: ignore[misc]
    """MONAI Label's DICOMweb datastore, which notes empty final labels beside the image.

    A DICOM SEG has to have a segment, so an empty label cannot be sent to the server; MONAI Label by itself fails. All
    other labels go there as DICOM SEG, as always.
    """

    def answer_at_once(self) -> None:
        """Do not ask a server that does not answer again and again, while all other requests wait."""
        self._client.set_http_retry_params(retry=False)

    def get_image_uri(self, image_id: str) -> str:
        """The file of a series, which is fetched.

        Raises:
            ImageNotFoundException: there is no such series.
        """
        try:
            return str(super().get_image_uri(image_id))
        except (IndexError, KeyError) as error:
            raise _no_series(ImageNotFoundException, image_id) from error

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The file of a label, which is fetched if it is a final one.

        Raises:
            LabelNotFoundException: there is no such series.
        """
        try:
            return str(super().get_label_uri(label_id, label_tag, image_id))
        except (IndexError, KeyError) as error:
            raise _no_series(LabelNotFoundException, label_id) from error

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Save a label; see `monailabel.datastore.dicom.DICOMWebDatastore.save_label`.

        Returns:
            Its id; of an empty final label that of the image.

        Raises:
            ValueError: see `check_label`; nothing is saved.
        """
        with removing_upload(label_filename):
            check_label(label_filename, self.get_image_uri(image_id))  # whose info there is only when it was fetched
            if label_tag == DefaultLabelTag.FINAL:
                empty = not bool(load_label(label_filename).any())
                self.update_image_info(image_id, {MARKED_NORMAL: empty})
                if empty:
                    return image_id
                require_converter()
            return self.save_result(image_id, label_filename, label_tag, label_info, label_id)

    def save_result(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Save what an infer task answered."""
        return str(super().save_label(image_id, label_filename, label_tag, label_info, label_id))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is kept of an image; its path is the server's own business."""
        info: dict[str, Any] = super().get_image_info(image_id)
        info.pop("path", None)
        return info

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Series with a DICOM SEG on the server, or marked normal here."""
        on_server = super().get_labeled_images(label_tag, labels)
        here = [image for image in LocalDatastore.list_images(self) if self.get_image_info(image).get(MARKED_NORMAL)]
        return sorted({*on_server, *here})

    def status(self) -> dict[str, Any]:
        """Numbers of images and labels, with those marked normal."""
        return {**super().status(), "completed": len(self.get_labeled_images())}


def require_converter() -> None:
    """Refuse to make a DICOM SEG where its converter is missing.

    Raises:
        ValueError: says what to install.
    """
    if shutil.which(_CONVERTER) is None:
        raise ValueError(
            "Expected the converter of DICOM SEG on the server's machine; there is none. Install it there: pip install "
            "dcmqi"
        )


def _no_series(kind: type[MONAILabelException], series: str) -> MONAILabelException:
    return kind(f"There is no series {quoted(series)} on the DICOMweb server, or it cannot be read as an image.")

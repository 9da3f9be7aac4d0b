"""A DICOMweb datastore that accepts an empty final label, by which a reader marks a normal case."""

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
    """MONAI Label's DICOMweb datastore, with empty final labels recorded in the info of the image.

    A DICOM SEG needs a segment, so an empty label cannot be sent to the server, and MONAI Label itself fails on it. All
    other labels are sent as DICOM SEG as usual.
    """

    def answer_at_once(self) -> None:
        """Disable retries, during which all other requests would wait for a server that does not answer."""
        self._client.set_http_retry_params(retry=False)

    def get_image_uri(self, image_id: str) -> str:
        """Download a series, and return its file.

        Raises:
            ImageNotFoundException: the series does not exist.
        """
        try:
            return str(super().get_image_uri(image_id))
        except (IndexError, KeyError) as error:
            raise _no_series(ImageNotFoundException, image_id) from error

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Return the file of a label; a final one is downloaded.

        Raises:
            LabelNotFoundException: the series does not exist.
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
            Its id, or that of the image for an empty final label.

        Raises:
            ValueError: see `check_label`; nothing is saved.
        """
        with removing_upload(label_filename):
            check_label(label_filename, self.get_image_uri(image_id))  # the image has an info only after its download
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
        """Save the result of an infer task."""
        return str(super().save_label(image_id, label_filename, label_tag, label_info, label_id))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return the info of an image without its path, which is internal to the server."""
        info: dict[str, Any] = super().get_image_info(image_id)
        info.pop("path", None)
        return info

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the series with a DICOM SEG on the server, or marked normal here."""
        on_server = super().get_labeled_images(label_tag, labels)
        here = [image for image in LocalDatastore.list_images(self) if self.get_image_info(image).get(MARKED_NORMAL)]
        return sorted({*on_server, *here})

    def status(self) -> dict[str, Any]:
        """Return the numbers of images and labels, including images marked normal."""
        return {**super().status(), "completed": len(self.get_labeled_images())}


def require_converter() -> None:
    """Refuse to make a DICOM SEG without its converter.

    Raises:
        ValueError: names the package to install.
    """
    if shutil.which(_CONVERTER) is None:
        raise ValueError(
            "Expected the converter of DICOM SEG on the server's machine; there is none. Install it there: pip install "
            "dcmqi"
        )


def _no_series(kind: type[MONAILabelException], series: str) -> MONAILabelException:
    return kind(f"There is no series {quoted(series)} on the DICOMweb server, or it cannot be read as an image.")

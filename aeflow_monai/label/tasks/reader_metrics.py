"""Voxel and lesion metrics of the model against readers' final labels, for the app's stats."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Compose, CopyItemsd, Invertd
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from torch import Tensor

from aeflow_monai.engine.bundles.model import Model
from aeflow_monai.files import write_json
from aeflow_monai.label.options import device_of
from aeflow_monai.label.requests.answers import message_of
from aeflow_monai.label.studies.final_labels import LabelledImage, labelled_images, load_label
from aeflow_monai.label.studies.records import read_report
from aeflow_monai.label.studies.submissions import lay_on_grid
from aeflow_monai.label.tasks.inference import Pipeline
from aeflow_monai.metrics import LesionMetrics, VoxelMetrics

__all__ = ["VoxelEvaluation"]

_logger = logging.getLogger(__name__)


class VoxelEvaluation(ScoringMethod):  # type: ignore[misc]
    """A scoring method that compares the newest model's maps with the final labels by voxels and by lesions.

    Images that the model was trained on are left out. A report needs at least one label that is not empty. It records
    its model and labels, and is made again when one of them changes.

    Args:
        pipeline: runs inference on an image.
        path: path of the report, a JSON file.
    """

    def __init__(self, pipeline: Pipeline, path: str | Path) -> None:
        super().__init__("Voxel and lesion metrics of the newest model on the final labels")
        self.pipeline = pipeline
        self.path = Path(path)

    def report(self) -> dict[str, Any]:
        """Return the last report; empty if there is none.

        Returns:
            "model_version", "labels" (their state), "n_images", "n_trained_on" (left out), "failed" (messages by
            image), and "metrics" with the results of `VoxelMetrics` and `LesionMetrics`, or "why_none" with the reason
            why there are none.
        """
        return read_report(self.path)

    def is_stale(self, datastore: Datastore) -> bool:
        """Return whether the last report is out of date.

        Args:
            datastore: datastore of images and labels.
        """
        newest = self.pipeline.models.newest()
        if newest is None:
            return False
        labels, report = _fingerprint(datastore), self.report()
        if not labels and not report.get("labels"):
            return False
        return (report.get("model_version"), report.get("labels")) != (newest, labels)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Make the report, unless it is up to date.

        Args:
            request: "device", optional; "force" makes it even if nothing has changed.
            datastore: datastore of images and labels.

        Returns:
            The report, which is also written to its file.

        Raises:
            FileNotFoundError: there is no model yet.
        """
        version = self.pipeline.models.require()
        if not (request.get("force") or self.is_stale(datastore)):
            return self.report()
        labels = _fingerprint(datastore)
        trained = self.pipeline.models.trained_on(version)
        images = labelled_images(datastore)
        wanted = [image for image in images if image.case not in trained]
        model = self.pipeline.models.open(version, device_of(request))
        voxels, lesions = VoxelMetrics(), LesionMetrics()
        failed: dict[str, str] = {}
        for image in wanted:
            try:
                self._add(image, model, voxels, lesions)
            except Exception as error:  # fails this image only, and is reported
                failed[image.case] = message_of(error)
                _logger.warning("A label is not in the metrics; the report says which, and why.")
                _logger.debug(f"{image.case} is not in the metrics: {failed[image.case]}")
        report: dict[str, Any] = {
            "model_version": version,
            "labels": labels,
            "n_images": len(wanted) - len(failed),
            "n_trained_on": len(images) - len(wanted),
            "failed": failed,
        }
        threshold = model.detector.score.thresholds["map_threshold"]
        try:
            report["metrics"] = voxels.compute(threshold) | lesions.compute()
        except ValueError as error:  # there is no lesion yet
            report["why_none"] = str(error)
        write_json(self.path, report)
        return report

    def _add(self, image: LabelledImage, model: Model, voxels: VoxelMetrics, lesions: LesionMetrics) -> None:
        back = Invertd(["anomaly_map", "foreground"], model.preprocessing, orig_keys="image", nearest_interp=False)
        with self.pipeline.lock:
            data: Any = model.preprocessing({"image": image.image})
            data["anomaly_map"] = model.infer(data["image"])["anomaly_map"]
            data = Compose([CopyItemsd("image", names="foreground"), back])(data)
        anomaly_map: MetaTensor = data["anomaly_map"].cpu()
        foreground = data["foreground"].amax(dim=0, keepdim=True) > 0
        lesion: Tensor = torch.zeros(anomaly_map.shape)
        if image.label:
            label = load_label(image.label)
            label = lay_on_grid(label, anomaly_map, image.label, image.image)
            lesion = torch.as_tensor(label).as_subclass(Tensor).reshape(anomaly_map.shape)
        spacing = affine_to_spacing(anomaly_map.affine, r=anomaly_map.ndim - 1).tolist()
        voxels.update(anomaly_map, lesion, foreground)
        lesions.update(anomaly_map, lesion, spacing, foreground)


def _fingerprint(datastore: Datastore) -> dict[str, Any]:
    """Return the final labels with their modification times, from the datastore, without reading them."""
    return {
        image: datastore.get_label_info(datastore.get_label_by_image_id(image, "final") or image, "final").get("ts", 0)
        for image in sorted(datastore.get_labeled_images())
    }

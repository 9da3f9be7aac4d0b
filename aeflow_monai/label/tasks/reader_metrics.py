"""Readers' corrected labels against the model: voxel and lesion metrics for the app's stats."""

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
    """Compares the newest model's maps with the final labels, voxel by voxel and lesion by lesion.

    Images that the model was trained on are left out. A report needs one label that is not empty. It says which model
    and labels it is of, and is made anew when one of them changes.

    Args:
        pipeline: that looks at an image.
        path: of the report, a JSON file.
    """

    def __init__(self, pipeline: Pipeline, path: str | Path) -> None:
        super().__init__("Voxel and lesion metrics of the newest model on the final labels")
        self.pipeline = pipeline
        self.path = Path(path)

    def report(self) -> dict[str, Any]:
        """The last report; empty if there is none.

        Returns:
            "model_version", "labels" (what they were), "n_images", "n_trained_on" (left out), "failed" (messages by
            image), and under "metrics" what `VoxelMetrics` and `LesionMetrics` report, or under "why_none" why there
            are none.
        """
        return read_report(self.path)

    def is_stale(self, datastore: Datastore) -> bool:
        """Whether there is something to report that the last report does not have.

        Args:
            datastore: with images and labels.
        """
        newest = self.pipeline.models.newest()
        if newest is None:
            return False
        labels, report = _fingerprint(datastore), self.report()
        if not labels and not report.get("labels"):
            return False
        return (report.get("model_version"), report.get("labels")) != (newest, labels)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Make the report.

        Args:
            request: "device", if wanted; "force" makes it anew even if nothing changed.
            datastore: with images and labels.

        Returns:
            The report, which is also written.

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
            except Exception as error:  # of this image only, and said in the report
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
        except ValueError as error:  # no lesion yet
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
    """The final labels, each with the time of its last change, as the datastore knows them without reading any."""
    return {
        image: datastore.get_label_info(datastore.get_label_by_image_id(image, "final") or image, "final").get("ts", 0)
        for image in sorted(datastore.get_labeled_images())
    }

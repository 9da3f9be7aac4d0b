"""Infer tasks: anomaly mask or map, with the score, the profile and the most anomalous slice."""

from __future__ import annotations

import os
import tempfile
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.inferers import Inferer
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.transform.post import Restored
from monailabel.transform.writer import Writer, write_itk
from monailabel.utils.others.generic import device_map

from aeflow_monai.engine.bundles.model import Model
from aeflow_monai.engine.config.stored_model import model_path
from aeflow_monai.label.models import ModelStore
from aeflow_monai.label.options import check_infer_options, device_of
from aeflow_monai.output.nifti_files import NIFTI, source_header, write_nifti
from aeflow_monai.output.viewer import CALIBRATED, ViewerResultd

__all__ = ["AnomalyInferTask", "MapInferTask", "MaskInferTask", "Pipeline", "load_writer"]

LABELS = {"anomaly": 1}


class Pipeline:
    """The state shared by all infer tasks: the models, and a lock that allows one case at a time.

    Concurrent requests wait for each other: one volume uses all cores, and memory stays that of one case.

    Args:
        models: model store; its newest version is used.
    """

    def __init__(self, models: ModelStore) -> None:
        self.models = models
        self.lock = threading.RLock()

    def load(self, version: int) -> None:
        """Preload what the first answer needs.

        Args:
            version: version of the model.
        """
        for device in device_map().values():
            self.models.open(version, device)
        load_writer()


class AnomalyInferTask(BasicInferTask):  # type: ignore[misc]
    """Base class of the infer tasks; subclasses choose the output.

    Options of a request, besides MONAI Label's own: "device", "result_extension", "result_dtype", and "threshold" (see
    `parse_threshold`).

    Args:
        pipeline: pipeline shared with the other tasks.
        type: MONAI Label's type of task; it determines where viewers list it.
        description: one sentence, shown by the viewer.
    """

    def __init__(self, pipeline: Pipeline, type: InferType, description: str) -> None:
        super().__init__(
            path=None,
            network=None,
            type=type,
            labels=LABELS,
            dimension=3,
            description=description,
            config={"threshold": CALIBRATED},
        )
        self.pipeline = pipeline

    @abstractmethod
    def output(self, data: Mapping[str, Any]) -> str:
        """Return the output: "mask", "map" or "scaled_map" of `ViewerResultd`."""

    def is_valid(self) -> bool:
        """Return whether there is a model; a task without one is not listed."""
        return self.pipeline.models.newest() is not None

    def get_path(self, validate: bool = True) -> str:
        """Return the file of the newest model, for clients that download it.

        Raises:
            FileNotFoundError: there is no model.
            ValueError: a client tries to upload one.
        """
        if not validate:
            raise ValueError(
                "A model file alone does not know its preprocessing: start the server with --model <folder>."
            )
        models = self.pipeline.models
        return str(model_path(models.folder_of(models.require())))

    def info(self) -> dict[str, Any]:
        """Describe the task for clients, with the version of the model."""
        newest = self.pipeline.models.newest()
        return {**super().info(), "version": str(newest) if newest else None}

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[str | None, dict[str, Any]]:
        """Run inference on one image.

        Args:
            request: "image", a path, and the options.
            callbacks: callbacks of MONAI Label.

        Returns:
            The path of the result, and the entries of `ViewerResultd` with "model_version".

        Raises:
            ValueError: an option has an invalid value; or the image is invalid.
            FileNotFoundError: there is no model, or the image does not exist.
        """
        # NIfTI by default, even for a PNG, since it keeps geometry and floats
        request = {**request, "result_extension": request.get("result_extension") or ".nii.gz"}
        check_infer_options(request)
        with self.pipeline.lock:
            # fix the version for all transforms, since a training may add another meanwhile
            request["model_version"] = self.pipeline.models.require()
            file, result = super().__call__(request, callbacks)
        return file, result

    def pre_transforms(self, data: Any = None) -> Sequence[Callable[..., Any]]:
        """Return the model's preprocessing."""
        return list(self._model(data).preprocessing.transforms)

    def inferer(self, data: Any = None) -> Inferer:
        """Return the model's inferer."""
        return self._model(data).inferer

    def run_inferer(self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cpu") -> dict[str, Any]:
        """Run the model; "pred" is then a dictionary, see `Model.infer`."""
        return {**data, "pred": self._model(data).infer(data["image"])}

    def post_transforms(self, data: Any = None) -> Sequence[Callable[..., Any]]:
        """Return the model's postprocessing, with the requested output in place of its final mask."""
        shown = ViewerResultd(output=self.output(data), threshold=data.get("threshold", CALIBRATED))
        return [*self._model(data).viewer_postprocessing.transforms, shown, Restored(keys="pred", ref_image="image")]

    def writer(self, data: dict[str, Any], extension: Any = None, dtype: Any = None) -> tuple[Any, Any]:
        """Write NIfTI as the command line does, with sform and qform of the input, and other formats by MONAI Label."""
        data["result"]["model_version"] = data["model_version"]
        data["result_dtype"] = data.get("result_dtype") or ("float32" if self.output(data) == "map" else "uint8")
        if data["result_extension"] not in NIFTI:
            return Writer(label="pred", json="result")(data)  # type: ignore[no-any-return]
        array = np.asarray(data["pred"], dtype=data["result_dtype"])
        handle, path = tempfile.mkstemp(suffix=data["result_extension"])
        os.close(handle)
        write_nifti(Path(path), array[None], data["pred_meta_dict"]["affine"], source_header(data["image"].meta))
        return path, data["result"]

    def _model(self, data: Mapping[str, Any]) -> Model:
        return self.pipeline.models.open(data["model_version"], device_of(data))


class MaskInferTask(AnomalyInferTask):
    """The infer task `anomaly_mask`: 1 where the map exceeds the threshold, 0 elsewhere.

    Args:
        pipeline: pipeline shared with the other tasks.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(
            pipeline,
            InferType.SEGMENTATION,
            "Mask of what is unlike the normals of the training. Research use only, not a medical device.",
        )

    def output(self, data: Mapping[str, Any]) -> str:
        """A mask."""
        return "mask"


class MapInferTask(AnomalyInferTask):
    """The infer task `anomaly_map`: the map itself as float32, or scaled to 8 bit where a request wants integers.

    It is no segmentation for viewers, which would take each grey level for a structure.

    Args:
        pipeline: pipeline shared with the other tasks.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(
            pipeline,
            InferType.OTHERS,
            "Anomaly map in standard deviations of held-out normals; of an integer result_dtype scaled to 0 to 255, "
            "128 at the threshold. Research use only, not a medical device.",
        )

    def output(self, data: Mapping[str, Any]) -> str:
        """The map, or scaled where integers are asked for."""
        return "scaled_map" if "int" in str(data.get("result_dtype") or "") else "map"


def load_writer() -> None:
    """Let ITK load what it writes NRRD with, which takes seconds at the first reply otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        write_itk(np.zeros((2, 2, 2), np.uint8), f"{folder}/nothing.nrrd", np.eye(4), None, False)

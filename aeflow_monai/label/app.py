"""The app itself: what MONAI Label's server asks it for, and answers that a reader can act on."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import requests
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.transform.writer import write_itk
from monailabel.utils.async_tasks.utils import tasks
from monailabel.utils.others.generic import device_map, strtobool

from aeflow_monai.label.batch import GuardedBatchInfer
from aeflow_monai.label.configs import BundleConfigs
from aeflow_monai.label.dicom import AnomalyDicomDatastore
from aeflow_monai.label.errors import readable_errors
from aeflow_monai.label.evaluation import VoxelEvaluation
from aeflow_monai.label.infer import MapInferTask, MaskInferTask, Pipeline
from aeflow_monai.label.models import ModelStore
from aeflow_monai.label.scoring import AnomalyScoring
from aeflow_monai.label.strategies import MostAnomalous, NearestThreshold
from aeflow_monai.label.train import AnomalyTrainTask
from aeflow_monai.version import __version__
from aeflow_monai.workflow import keep_freed_memory
from aeflow_monai.writers import DISCLAIMER

__all__ = ["AnomalyApp"]

_logger = logging.getLogger(__name__)

_NICE = 10  # of scoring, batch inference and training: whoever waits at a viewer goes first
_STALE_SECONDS = 60 * 60
# From the start until images are scored in the background, unless a reader asks for the next sample before: whoever has
# just started the server most likely waits for a first answer.
_SCORING_DELAY = 30


class AnomalyApp(MONAILabelApp):  # type: ignore[misc]
    """Anomaly detection for MONAI Label: infer tasks, worklist, training and evaluation around one versioned model.

    Everything that is written goes to the studies' folder and to `app_dir`.

    Args:
        app_dir: folder of the app: models, logs, temporary files, sessions.
        studies: folder of images, or the address of a DICOMweb server.
        conf: "bundle", the bundle's folder; "configs", overlays, separated by commas; "model", a checkpoint to begin
            with; "preload", whether to load the model at the start, true by default.

    Raises:
        FileNotFoundError: a file that `conf` names is not there.
        ValueError: its model does not fit the bundle's network.
    """

    _auto_update_scoring: bool

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None) -> None:
        conf = dict(conf or {})
        self._is_remote = studies.startswith(("http://", "https://"))
        self._parent = os.getppid()
        _keep_writes_inside(Path(app_dir))
        keep_freed_memory()
        overlays = [overlay.strip() for overlay in conf.get("configs", "").split(",") if overlay.strip()]
        self.configs = BundleConfigs(conf.get("bundle"), overlays)
        self.models = ModelStore(Path(app_dir, "model"), self.configs)
        if given := conf.get("model"):
            if Path(given).is_file() or self.models.newest() is None:
                self.models.add(given, imported_from=Path(given).name)
            else:
                _logger.warning(f"There is no file {given} any more; the newest of the app's own models is used.")
        self.pipeline = Pipeline(self.configs, self.models)
        self.evaluation = VoxelEvaluation(self.pipeline, self.models.folder / "evaluation.json")
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"AE-Flow anomaly detection ({__version__})",
            description=f"Suspicious regions and a worklist sorted by anomaly, learned from your normals. {DISCLAIMER}",
            version=__version__,
            labels=["anomaly"],
        )

    def init_infers(self) -> dict[str, InferTask]:
        """The infer tasks `anomaly_mask` and `anomaly_map`."""
        return {"anomaly_mask": MaskInferTask(self.pipeline), "anomaly_map": MapInferTask(self.pipeline)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """The train task `anomaly`."""
        return {"anomaly": AnomalyTrainTask(self.configs, self.models, self.evaluation, self._is_orphan)}

    def init_strategies(self) -> dict[str, Strategy]:
        """The strategies `most_anomalous` and `nearest_threshold`."""
        return {"most_anomalous": MostAnomalous(), "nearest_threshold": NearestThreshold()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """The scoring methods `anomaly_score` and `voxel_metrics`."""
        task = self._infers["anomaly_map"]
        return {"anomaly_score": AnomalyScoring(task), "voxel_metrics": self.evaluation}

    def init_batch_infer(self) -> BatchInferTask:
        """Batch inference that goes on after a bad image."""
        return GuardedBatchInfer(self.models)

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer one infer request; see `MONAILabelApp.infer`.

        Raises:
            HTTPException: with what is wrong.
        """
        with readable_errors():
            self._require_task(request.get("model"), self._infers)
            self._require_image(request.get("image"), datastore or self.datastore())
            return super().infer(request, datastore)  # type: ignore[no-any-return]

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the next image for a reader; see `MONAILabelApp.next_sample`.

        Raises:
            HTTPException: with what is wrong.
        """
        with readable_errors():
            return super().next_sample(request)  # type: ignore[no-any-return]

    def batch_infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Look at many images; see `GuardedBatchInfer`.

        Raises:
            HTTPException: with what is wrong.
        """
        self._step_back()
        with readable_errors():
            return super().batch_infer(request, datastore)  # type: ignore[no-any-return]

    def scoring(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a scoring method; see `MONAILabelApp.scoring`.

        Raises:
            HTTPException: with what is wrong.
        """
        self._step_back()
        with readable_errors():
            return super().scoring(request, datastore)  # type: ignore[no-any-return]

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Train; see `AnomalyTrainTask`.

        Raises:
            HTTPException: with what is wrong.
        """
        self._step_back()
        with readable_errors():
            return super().train(request)  # type: ignore[no-any-return]

    def bundle_path(self, model: str | None) -> None:
        """Refuse a task for a model that there is not.

        MONAI Label asks this before it starts a process of its own for training or batch inference, which is the last
        moment for an answer that the client sees.

        Raises:
            HTTPException: there is no such task, or no model yet to infer with.
        """
        if model is None or model in self._trainers:
            return
        with readable_errors():
            self._require_task(model, {**self._infers, **self._trainers})
            self.models.require()

    def async_scoring(self, method: str | None, params: Any = None) -> Any:
        """Start scoring in the background, where there is something to score.

        Args:
            method: by name; if None all that have something to do, unless they wait for their turn already. Series of a
                DICOMweb server are scored only when asked for by name, since they would all be downloaded.
            params: of the methods.

        Returns:
            See `MONAILabelApp.async_scoring`.
        """
        if method:
            return super().async_scoring(method, params)
        if self._is_remote:
            return {}
        stale = [name for name, scoring in self._scoring_methods.items() if scoring.is_stale(self.datastore())]
        if not self._server_mode:
            # a training that has ended; of several requests by name the server would refuse all but the first
            try:
                return self._local_request("/scoring/", None, "Scoring") if stale else {}
            except requests.RequestException as error:
                _logger.warning(f"The server cannot be asked for scores, they are made at its next start: {error}")
                return {}
        waiting = {t["request"].get("method") for t in tasks("scoring") if t["status"] in ("SUBMITTED", "RUNNING")}
        return {name: super(AnomalyApp, self).async_scoring(name, params) for name in stale if name not in waiting}

    def on_init_complete(self) -> None:
        """Begin with no old temporary files, and load what the first answer would wait for."""
        for file in Path(tempfile.gettempdir()).iterdir():
            if file.is_file() and time.time() - file.stat().st_mtime > _STALE_SECONDS:
                file.unlink()
        if strtobool(self.conf.get("preload", "true")) and self.models.newest() is not None:
            for device in device_map().values():
                self.models.load(device)
            _load_writer()
        scores = self._auto_update_scoring and not self._is_remote
        self._auto_update_scoring = False
        super().on_init_complete()
        self._auto_update_scoring = scores
        if scores:
            timer = threading.Timer(_SCORING_DELAY, self.async_scoring, [None])
            timer.daemon = True
            timer.start()

    def _init_dicomweb_datastore(self) -> Datastore:
        """MONAI Label's datastore, in which an empty final label is possible."""
        made = super()._init_dicomweb_datastore()
        made.__class__ = AnomalyDicomDatastore  # which adds no state; MONAI Label has no other way to choose a class
        return made

    def _download_dcmqi_tools(self) -> None:
        """Nothing is downloaded: the tools of the package dcmqi are used if it is installed."""

    def _require_image(self, image: Any, datastore: Datastore) -> None:
        if not isinstance(image, str) or Path(image).exists():
            return
        try:
            found = datastore.get_image_uri(image)
        except (IndexError, KeyError, requests.RequestException) as error:  # as a DICOMweb server happens to answer
            raise ValueError(
                f"The series {image!r} cannot be fetched from {self.studies} ({type(error).__name__}). Is it there, "
                "and does the server answer?"
            ) from error
        if not found:
            raise ValueError(f"There is no image {image!r} among the studies. Choose another, or put its file there.")

    def _require_task(self, name: str | None, known: Mapping[str, Any]) -> None:
        if name not in known:
            raise HTTPException(404, detail=f"There is no model {name!r}. Choose one of {', '.join(known)}.")

    def _step_back(self) -> None:
        if not self._server_mode and hasattr(os, "nice"):
            os.nice(_NICE)

    def _is_orphan(self) -> bool:
        """Whether this is a task's process whose server is gone."""
        return not self._server_mode and os.getppid() != self._parent


def _load_writer() -> None:
    """Let ITK load what it writes NRRD with, which takes seconds at the first reply otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        write_itk(np.zeros((2, 2, 2), np.uint8), f"{folder}/nothing.nrrd", np.eye(4), None, False)


def _keep_writes_inside(app_dir: Path) -> None:
    """Let results on their way, uploads, sessions and DICOM lie in the app's folder, not in the system's or a home."""
    temporary = app_dir / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(temporary)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(temporary / "inductor"))  # made even if nothing is compiled
    if not settings.MONAI_LABEL_SESSION_PATH:
        settings.MONAI_LABEL_SESSION_PATH = str(app_dir / "sessions")
    if not settings.MONAI_LABEL_DICOMWEB_CACHE_PATH:
        settings.MONAI_LABEL_DICOMWEB_CACHE_PATH = str(app_dir / "dicom")

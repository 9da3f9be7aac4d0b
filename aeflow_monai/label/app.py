"""The MONAI Label app: tasks, datastore and requests, with error messages that a reader can act on."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import file_checksum, strtobool

from aeflow_monai.about import DISCLAIMER, __version__
from aeflow_monai.engine.inference.allocator import keep_freed_memory
from aeflow_monai.label.background import call_later, check_before_start, note_server
from aeflow_monai.label.logs import keep_log_discreet
from aeflow_monai.label.models import ModelStore
from aeflow_monai.label.options import check_known, image_path
from aeflow_monai.label.requests.answers import readable_errors
from aeflow_monai.label.requests.door import close_door
from aeflow_monai.label.requests.rules import rules_of
from aeflow_monai.label.requests.server import refuse_presets_beside_a_model
from aeflow_monai.label.studies.dicomweb import AnomalyDicomDatastore
from aeflow_monai.label.studies.folder import AnomalyLocalDatastore
from aeflow_monai.label.studies.sessions import GuardedSessions
from aeflow_monai.label.tasks.batch import GuardedBatchInfer
from aeflow_monai.label.tasks.inference import MapInferTask, MaskInferTask, Pipeline
from aeflow_monai.label.tasks.reader_metrics import VoxelEvaluation
from aeflow_monai.label.tasks.retraining import AnomalyTrainTask
from aeflow_monai.label.tasks.strategies import MostAnomalous, NearestThreshold
from aeflow_monai.label.tasks.task_check import TaskCheck, require_known, waiting_tasks
from aeflow_monai.label.tasks.worklist_scores import AnomalyScoring
from aeflow_monai.label.temporary import keep_writes_inside, remove_stale, removing_upload

__all__ = ["AnomalyApp"]

_logger = logging.getLogger(__name__)

_NICE = 10  # priority of scoring, batch inference and training: requests of viewers go first
# Seconds from the start until images are scored in the background, unless a reader requests the next sample earlier:
# a reader who has just started the server most likely waits for a first answer.
_SCORING_DELAY = 30
# MONAI Label's strategy if a request names none; its OHIF viewer requests it whatever is chosen in the panel.
_NO_CHOICE = "random"


class AnomalyApp(MONAILabelApp):  # type: ignore[misc]
    """Anomaly detection for MONAI Label: infer tasks, worklist, training and evaluation around one versioned model.

    Everything is written to the folder of the studies or to `app_dir`.

    Args:
        app_dir: folder of the app: models, logs, temporary files, sessions.
        studies: folder of images, or the address of a DICOMweb server.
        conf: "model", the bundle of a training to start with; or "presets" of the first training, separated by commas,
            see `config_files`; "preload", whether to load the model at the start, true by default.

    Raises:
        ValueError: a preset does not exist; or presets are given with a model, which has its own options.
    """

    _auto_update_scoring: bool

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None) -> None:
        conf = dict(conf or {})
        keep_log_discreet()
        self._is_remote = studies.startswith(("http://", "https://"))
        keep_writes_inside(Path(app_dir))
        keep_freed_memory()
        self.presets = [preset.strip() for preset in conf.get("presets", "").split(",") if preset.strip()]
        refuse_presets_beside_a_model(conf.get("model"), self.presets)
        self.models = ModelStore(Path(app_dir, "model"))
        self.pipeline = Pipeline(self.models)
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

    def info(self) -> dict[str, Any]:
        """Describe the app; see `MONAILabelApp.info`."""
        info: dict[str, Any] = super().info()
        info["strategies"].pop(_NO_CHOICE, None)  # not a choice for readers
        return info

    def init_datastore(self) -> Datastore:
        """Return the datastore of the studies: a folder, or MONAI Label's datastore for an address."""
        if self._is_remote:
            return super().init_datastore()
        return AnomalyLocalDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Return the infer tasks `anomaly_mask` and `anomaly_map`."""
        return {"anomaly_mask": MaskInferTask(self.pipeline), "anomaly_map": MapInferTask(self.pipeline)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return the train task `anomaly`."""
        return {"anomaly": AnomalyTrainTask(self.models, self.evaluation, self.presets)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the strategies `most_anomalous`, which is also the default, and `nearest_threshold`."""
        return {
            "most_anomalous": MostAnomalous(self.models),
            "nearest_threshold": NearestThreshold(self.models),
            _NO_CHOICE: MostAnomalous(self.models),
        }

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Return the scoring methods `anomaly_score` and `voxel_metrics`."""
        task = self._infers["anomaly_map"]
        return {"anomaly_score": AnomalyScoring(task), "voxel_metrics": self.evaluation}

    def init_batch_infer(self) -> BatchInferTask:
        """Return the batch inference task, which continues after an image fails."""
        return GuardedBatchInfer(self.models)

    def model_file(self, model: str, validate: bool = True) -> str | None:
        """Return the file of the newest model; see `MONAILabelApp.model_file`.

        Raises:
            HTTPException: there is no model yet, or a client tries to upload one.
        """
        with readable_errors():
            return super().model_file(model, validate)  # type: ignore[no-any-return]

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer one infer request; see `MONAILabelApp.infer`.

        Raises:
            HTTPException: the request fails; the message names the cause.
        """
        store, start = datastore or self.datastore(), time.monotonic()
        image = request.get("image")
        with readable_errors(), removing_upload(str(image)):
            if self._server_mode:
                check_known("infer", request)
            require_known("model", request, self._infers)
            path = image_path(image, store, self._upload_folders())
            # MONAI Label treats a name as a path if it exists in the working directory of the server
            with readable_errors(path, "the upload" if path == image else Path(path).name):
                answer: dict[str, Any] = super().infer({**request, "image": path}, store)
            if request.get("save_label") and path != image and answer["file"]:
                what = {"model": request["model"], "params": answer["params"]}
                answer["label"] = store.save_result(image, answer["file"], request.get("label_tag", "original"), what)
            _logger.info(f"{request['model']} answered in {time.monotonic() - start:.1f} s.")
            return answer

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the next image for a reader; see `MONAILabelApp.next_sample`.

        Raises:
            HTTPException: the request fails; the message names the cause.
        """
        with readable_errors():
            check_known("activelearning", request)
            sample: dict[str, Any] = super().next_sample(request)
            sample.pop("path", None)  # internal to the server
            if sample and not self._is_remote:  # Slicer caches downloads by name, which servers may share
                sample["checksum"] = file_checksum(self.datastore().get_image_uri(sample["id"]))
            return sample

    def batch_infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run inference on many images; see `GuardedBatchInfer`.

        Raises:
            HTTPException: the request fails; the message names the cause.
        """
        self._step_back()
        with readable_errors():
            return super().batch_infer(request, datastore)  # type: ignore[no-any-return]

    def scoring(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a scoring method; see `MONAILabelApp.scoring`.

        Raises:
            HTTPException: the request fails; the message names the cause.
        """
        self._step_back()
        with readable_errors():
            return super().scoring(request, datastore)  # type: ignore[no-any-return]

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Train; see `AnomalyTrainTask`.

        Raises:
            HTTPException: the request fails; the message names the cause.
        """
        self._step_back()
        with readable_errors():
            return super().train(request)  # type: ignore[no-any-return]

    def server_mode(self, mode: bool) -> None:
        """Note that this process is the server; see `MONAILabelApp.server_mode`."""
        super().server_mode(mode)
        if mode:
            from monailabel.app import app  # imported late, since it reads the settings of the server

            note_server()
            check_before_start(
                TaskCheck(self._infers, self._trainers, self._scoring_methods, self.models, self.datastore)
            )
            close_door(app, rules_of(self.conf, self.studies, self.app_dir, self._has_image))

    def async_scoring(self, method: str | None, params: Any = None) -> Any:
        """Start scoring in the background if there is something to score.

        Args:
            method: name of the method; if None, all methods that have work and are not queued yet. Series of a DICOMweb
                server are scored only if the method is named, since all of them would be downloaded.
            params: options of the methods.

        Returns:
            See `MONAILabelApp.async_scoring`.
        """
        if method:
            return super().async_scoring(method, params)
        if self._is_remote:
            return {}
        stale = [name for name, scoring in self._scoring_methods.items() if scoring.is_stale(self.datastore())]
        if not self._server_mode:
            # after a training; the server would refuse all but the first of several named requests
            try:
                return self._local_request("/scoring/", None, "Scoring") if stale else {}
            except requests.RequestException as error:
                _logger.warning(f"The server cannot be asked for scores, they are made at its next start: {error}")
                return {}
        waiting = {request.get("method") for request in waiting_tasks("scoring")}
        return {name: super(AnomalyApp, self).async_scoring(name, params) for name in stale if name not in waiting}

    def on_init_complete(self) -> None:
        """Remove old temporary files, add the model to the store, and preload what the first answer needs.

        Raises:
            FileNotFoundError: the model that `conf` names does not exist.
            ValueError: it is not a complete bundle.
        """
        if given := self.conf.get("model"):  # only in the server: tasks start later, when another version may be in use
            self.models.begin_with(given)
        newest = self.models.newest()
        if newest and self.presets:
            _logger.warning("The presets are not used: this app has a model, whose options hold on.")
        if newest and strtobool(self.conf.get("preload", "true")):
            self.pipeline.load(newest)
        scores = self._auto_update_scoring and not self._is_remote
        self._auto_update_scoring = False
        super().on_init_complete()
        self._auto_update_scoring = scores
        if scores:
            call_later(_SCORING_DELAY, lambda: self.async_scoring(None))
        keep_log_discreet()  # also for loggers made since

    def cleanup_sessions(self) -> None:
        """Remove expired sessions and stale temporary files; MONAI Label calls it every 5 minutes."""
        if self._sessions is not None:  # MONAI Label treats a store without sessions as no store
            self._sessions.remove_expired()
        remove_stale(tempfile.gettempdir())

    def _load_sessions(self, load: bool = False) -> GuardedSessions | None:
        return GuardedSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY) if load else None

    def _upload_folders(self) -> tuple[str, ...]:
        return (tempfile.gettempdir(), settings.MONAI_LABEL_SESSION_PATH)

    def _has_image(self, image: str) -> bool:
        return image in self.datastore().list_images()

    def _init_dicomweb_datastore(self) -> Datastore:
        """Return MONAI Label's DICOMweb datastore, extended to accept empty final labels."""
        made = super()._init_dicomweb_datastore()
        made.__class__ = AnomalyDicomDatastore  # the class adds no state, and MONAI Label has no other way to choose it
        made.answer_at_once()
        return made

    def _download_dcmqi_tools(self) -> None:
        """Download nothing: the tools of the package dcmqi are used if it is installed."""

    def _step_back(self) -> None:
        if not self._server_mode and hasattr(os, "nice"):
            os.nice(_NICE)

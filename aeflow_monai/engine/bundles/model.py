"""A trained model, opened from its bundle, and its prediction for an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd
from torch import Tensor

from aeflow_monai.engine.bundles.given_image import loadable
from aeflow_monai.engine.config.fixed_options import require_own_config
from aeflow_monai.engine.config.option_types import require_options
from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.engine.inference.picture_warning import saw_pictures
from aeflow_monai.errors import unwrapped
from aeflow_monai.output.case_score import GatherScoresd, MaskMapd, is_diffuse
from aeflow_monai.output.maps import MAPS
from aeflow_monai.output.slice_place import SlicePlace, most_anomalous_place, slice_places

__all__ = ["Model", "Prediction", "predict"]


class Prediction(NamedTuple):
    """Prediction of a model for one image.

    Attributes:
        anomaly_map: map on the image's grid, with its affine: (1, X, Y[, Z]), in standard deviations of held-out
            normals.
        anomaly_mask: where the map exceeds the model's map threshold, in the same form, uint8.
        anomaly_score: score of the whole image.
        map_score: score from the maps, without the global term.
        global_term: how unusual the image is as a whole, which the map does not show; see `aeflow_monai.score.Score`.
            NaN if the model has no global term.
        is_abnormal: whether the score exceeds the model's threshold.
        p_value: probability that a new normal image scores as high, see `aeflow_monai.score.HeldOutScores`; NaN if the
            model has no held-out scores.
        n_held_out: number of held-out normal patients that the p-value is based on.
        most_anomalous_slice: its place in the file; None for a 2D image.
        slice_scores: for each plane the scores of its slices, (D,); NaN where a slice was skipped. Axial slices run
            from inferior to superior, coronal ones from anterior to posterior, sagittal ones from right to left.
        slice_places: for each plane the places of these slices in the file; none for a 2D image.
        thresholds: case, slice and map threshold, by name.
        maps: "reconstruction" and "residual" in [0, 1], and "log_likelihood" in nats per channel, on the image's grid.
    """

    anomaly_map: MetaTensor
    anomaly_mask: MetaTensor
    anomaly_score: float
    map_score: float
    global_term: float
    is_abnormal: bool
    p_value: float
    n_held_out: int
    most_anomalous_slice: SlicePlace | None
    slice_scores: dict[str, Tensor]
    slice_places: dict[str, list[SlicePlace]]
    thresholds: dict[str, float]
    maps: dict[str, MetaTensor]

    def __repr__(self) -> str:
        """Return a summary for `print`: score, verdict, p-value and the most anomalous slice."""
        verdict = "abnormal" if self.is_abnormal else "normal"
        threshold = self.thresholds["case_threshold"]
        if is_diffuse(self.anomaly_score, self.map_score, threshold):
            verdict += " as a whole, by its global term"
        lines = [f"case score {self.anomaly_score:.2f}, threshold {threshold:.2f}: {verdict}"]
        if self.n_held_out:
            normals = "normal" if self.n_held_out == 1 else "normals"
            lines.append(f"p-value {self.p_value:.2g} among {self.n_held_out} held-out {normals}")
        if self.most_anomalous_slice is not None:
            lines.append(f"most anomalous slice: {self.most_anomalous_slice}")
        return "\n".join(lines)


class Model:
    """A model opened from the bundle that a training wrote, with its preprocessing, detector and slicing.

    Args:
        folder: folder of the bundle.
        device: torch device.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the bundle's parts do not belong together, or the device is not available.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        require_options({"device": str(device)})
        self.folder = Path(folder)
        if self.folder.is_file():
            raise ValueError(
                f"{folder} is a file: give the folder that the training wrote, which holds configs and models."
            )
        stored = require_own_config(self.folder, None)
        parser = ConfigParser()
        parser.read_config(str(self.folder / "configs" / "inference.yaml"))
        if "inferer#outputs" in parser:  # all maps, whatever runs write
            parser["inferer#outputs"] = None
        with unwrapped():
            self.preprocessing: Compose = parser.get_parsed_content("preprocessing")
            self.inferer: Any = parser.get_parsed_content("inferer")
            self.viewer_postprocessing: Compose = parser.get_parsed_content("post_transforms")
            self.detector: Detector = parser.get_parsed_content("network_def")
        self._of_pictures = saw_pictures(stored.state)
        self.detector.load_state_dict(dict(stored.state))
        self.detector.to(torch.device(device)).eval()

    @torch.no_grad()
    def infer(self, image: MetaTensor) -> dict[Any, Any]:
        """Run `SlicedInferer` on a preprocessed image (C, X, Y, Z), and drop the batch dimension of its output."""
        (of_image,) = decollate_batch(self.inferer(image[None].to(self.detector.device), self.detector))
        return dict(of_image)

    def predict(self, image: Any) -> Prediction:
        """Score one image.

        Args:
            image: path of an image file or of a folder of DICOM files; or a list of them, which become the channels of
                one image, in the order of the training; or an array or tensor (X, Y) or (X, Y, Z), of one channel. The
                affine of a `MetaTensor` is used, in RAS; the axes of any other array are taken to run to the right, to
                anterior and to superior, with a spacing of 1 mm. Give 2D image files by their path, since arrays of
                them have other axes.

        Returns:
            Maps, mask and scores.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the image cannot be used; the message gives the reason.
        """
        with unwrapped():
            data: Any = self.preprocessing({"image": loadable(image, self._of_pictures), "case": "image"})
            data = GatherScoresd()({**data, **self.infer(data["image"])})
            back = Invertd(keys=MAPS, orig_keys="image", transform=self.preprocessing, nearest_interp=False)
            data = MaskMapd()(back(data))
        return Prediction(
            anomaly_map=data["anomaly_map"],
            anomaly_mask=data["anomaly_mask"],
            anomaly_score=data["anomaly_score"],
            map_score=data["map_score"],
            global_term=data["global_term"],
            is_abnormal=bool(data["prediction"]),
            p_value=data["p_value"],
            n_held_out=data["n_held_out"],
            most_anomalous_slice=most_anomalous_place(data["image"], data["slice_scores"]),
            slice_scores=data["slice_scores"],
            slice_places={plane: slice_places(data["image"], plane) for plane in data["slice_scores"]},
            thresholds=self.detector.score.thresholds,
            maps={name: data[name] for name in MAPS[1:]},
        )


def predict(image: Any, model: str | Path | Model, device: torch.device | str = "cpu") -> Prediction:
    """Score one image with a trained model; for several images, open the `Model` once.

    Args:
        image: see `Model.predict`.
        model: folder of the bundle that the training wrote, or a model that is open.
        device: torch device, for a folder; an open model has its own.

    Returns:
        Maps, mask and scores.
    """
    return (model if isinstance(model, Model) else Model(model, device)).predict(image)

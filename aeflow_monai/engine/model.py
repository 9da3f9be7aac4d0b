"""A trained model, opened from its bundle, and what it says of one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd
from torch import Tensor

from aeflow_monai.engine.detector import Detector
from aeflow_monai.engine.fixed_options import require_own_config
from aeflow_monai.engine.option_types import require_options
from aeflow_monai.errors import unwrapped
from aeflow_monai.output.case_score import GatherScoresd, MaskMapd
from aeflow_monai.output.maps import MAPS

__all__ = ["Model", "Prediction", "predict"]


class Prediction(NamedTuple):
    """What a model says of one image.

    Attributes:
        anomaly_map: on the image's grid, with its affine: (1, X, Y[, Z]), in standard deviations of held-out normals.
        anomaly_mask: where the map exceeds the model's threshold, likewise, uint8.
        anomaly_score: of the whole image.
        is_abnormal: whether the score exceeds the model's threshold.
        slice_scores: for each plane the scores of its slices, (D,); NaN where a slice was skipped.
        thresholds: case, slice and map threshold, by name.
        maps: "reconstruction" and "residual" in [0, 1], and "log_likelihood" in nats per channel, on the image's grid.
    """

    anomaly_map: MetaTensor
    anomaly_mask: MetaTensor
    anomaly_score: float
    is_abnormal: bool
    slice_scores: dict[str, Tensor]
    thresholds: dict[str, float]
    maps: dict[str, MetaTensor]


class Model:
    """A bundle that a training wrote, opened: its preprocessing, its detector, its way through slices.

    Args:
        folder: of the bundle.
        device: of torch.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the bundle's parts do not belong together, or torch has no such device here.
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
        with unwrapped():
            self.preprocessing: Compose = parser.get_parsed_content("preprocessing")
            self.inferer: Any = parser.get_parsed_content("inferer")
            self.viewer_postprocessing: Compose = parser.get_parsed_content("post_transforms")
            self.detector: Detector = parser.get_parsed_content("network_def")
        self.detector.load_state_dict(dict(stored.state))
        self.detector.to(torch.device(device)).eval()

    @torch.no_grad()
    def infer(self, image: MetaTensor) -> dict[Any, Any]:
        """What `SlicedInferer` gives for a preprocessed image (C, X, Y, Z), without the batch dimension."""
        (of_image,) = decollate_batch(self.inferer(image[None].to(self.detector.device), self.detector))
        return dict(of_image)

    def predict(self, image: Any) -> Prediction:
        """Look at one image.

        Args:
            image: path of an image file or of a folder of DICOM files; or an array or tensor (X, Y) or (X, Y, Z), of
                one channel. A `MetaTensor` brings its affine, in RAS; the axes of any other array run to the right, to
                the front and upwards, by 1 mm. Give pictures by their path: their arrays run otherwise.

        Returns:
            Maps, mask and scores.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the image cannot be used; the message says why.
        """
        with unwrapped():
            data: Any = self.preprocessing({"image": _loadable(image), "case": "image"})
            data = GatherScoresd()({**data, **self.infer(data["image"])})
            back = Invertd(keys=MAPS, orig_keys="image", transform=self.preprocessing, nearest_interp=False)
            data = MaskMapd()(back(data))
        return Prediction(
            anomaly_map=data["anomaly_map"],
            anomaly_mask=data["anomaly_mask"],
            anomaly_score=data["anomaly_score"],
            is_abnormal=bool(data["prediction"]),
            slice_scores=data["slice_scores"],
            thresholds=self.detector.score.thresholds,
            maps={name: data[name] for name in MAPS[1:]},
        )


def predict(image: Any, model: str | Path, device: torch.device | str = "cpu") -> Prediction:
    """Look at one image with a trained model; for several, open the `Model` once.

    Args:
        image: see `Model.predict`.
        model: folder of the bundle that the training wrote.
        device: of torch.

    Returns:
        Maps, mask and scores.
    """
    return Model(model, device).predict(image)


def _loadable(image: Any) -> Any:
    """A path as text; an array with the channel first and its affine."""
    if isinstance(image, (str, Path)):
        return str(image)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(f"Expected a path, an array or a tensor; got {type(image).__name__}.")
    if image.dtype in (np.uint8, torch.uint8) and image.ndim == 3 and image.shape[-1] in (3, 4):
        raise ValueError(f"An array of shape {tuple(image.shape)} is taken for a picture with colours: give its path.")
    if 0 in image.shape:
        raise ValueError(f"Expected an image with voxels; got the shape {tuple(image.shape)}.")
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    if isinstance(image, MetaTensor) and len(image.meta.get("spatial_shape", image.shape)) == image.ndim - 1:
        return MetaTensor(image.detach().float())  # as MONAI's loader gives it with the channel first
    if image.ndim not in (2, 3):
        raise ValueError(f"Expected an image (X, Y) or a volume (X, Y, Z); got the shape {tuple(image.shape)}.")
    return MetaTensor(image.detach().float()[None])

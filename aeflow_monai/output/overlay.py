"""The overlay: a picture of the image, of the anomaly map over it, and of what exceeds the threshold."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.colors import Normalize
from monai.data import MetaTensor
from monai.transforms import MapTransform

from aeflow_monai.files import case_file_name
from aeflow_monai.geometry import PLANES, ras_affine
from aeflow_monai.output.case_score import is_diffuse, most_anomalous_slice
from aeflow_monai.output.deferred import DeferredMap, alone_if_large, assembled
from aeflow_monai.output.maps import to_numpy
from aeflow_monai.output.panels import Layers, Scales, block_maxima, block_means, draw_panels, save_picture
from aeflow_monai.output.slice_place import slice_places

__all__ = ["WriteOverlayd"]

Array = npt.NDArray[Any]

OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_SAMPLED = 10**6  # voxels that tell the grey scale


class WriteOverlayd(MapTransform):  # type: ignore[misc]
    """Write a picture of the image, the anomaly map over it, and the outline of what exceeds the threshold.

    The file is `<output_dir>/<case>_overlay.png`. The arrays are taken in the network's orientation,
    (C, rows, columns, slices), before any inversion: `data[..., k]` is an upright picture already (rows from
    anterior to posterior, columns from the patient's right to the left). Coronal and sagittal slices are
    turned upright, superior on top. Letters at the edges tell the sides, if the image has an affine. Pixels
    are shown with their physical proportions. A picture of more than 2048 rows or columns is drawn at a lower
    resolution, 640 at most, as a panel has fewer: the mean of its grey levels, the largest map value.

    Colours stand on the fixed scale [0, vmax], in standard deviations of the normals, never on that of one
    image, so that two pictures compare. Of a volume, the slice with the largest score along the first axis of
    `slice_scores` is shown, or the one with the largest map value if there is no such key. The title says where
    it lies in its file, see `SlicePlace`, and of the case the `anomaly_score`, the `case_threshold` and the verdict, as
    far as they are in the data. So is the outline of `lesion` drawn.

    Args:
        image_key: Key of the image, shape (C, H, W) or (C, H, W, D), of which the first channel is shown.
        map_key: Key of the anomaly map, shape (1, H, W) or (1, H, W, D), in standard deviations; may be deferred.
        output_dir: Folder to write to, made if it is missing.
        threshold: Map value from which the outline is drawn, in standard deviations; the case's own "map_threshold",
            which the model tells, if None.
        slice_axis: Spatial axis along which a volume without `slice_scores` is sliced, 0 to 2.
        vmax: Map value of the brightest colour, in standard deviations; by default 2 * max(threshold, 3).
        reconstruction_key: Key of the reconstruction, shown beside the image on its grey scale; left out if None.

    Raises:
        ValueError: If `slice_axis` or `vmax` is out of range; when called, if the case is no file name, if
            the threshold is not finite, if shapes do not match, or if the axis of the scores is unknown.
        TypeError: When called, if the slice scores are not a dictionary.

    Example:
        >>> import tempfile, torch
        >>> image, anomaly_map = torch.rand(1, 32, 32, 4), torch.randn(1, 32, 32, 4)
        >>> case = {"case": "sub-01", "image": image, "anomaly_map": anomaly_map}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = WriteOverlayd("image", "anomaly_map", folder, threshold=2.0)(case)
        ...     [file.name for file in Path(folder).iterdir()]
        ['sub-01_overlay.png']
    """

    def __init__(
        self,
        image_key: str,
        map_key: str,
        output_dir: str | Path,
        threshold: float | None = None,
        slice_axis: int = 2,
        vmax: float | None = None,
        reconstruction_key: str | None = None,
    ) -> None:
        super().__init__((image_key, map_key))
        self.reconstruction_key = reconstruction_key
        if slice_axis not in (0, 1, 2):
            raise ValueError(f"slice_axis has to be 0, 1 or 2, got {slice_axis}.")
        if vmax is not None and not 0 < vmax < float("inf"):
            raise ValueError(f"vmax has to be a positive number of standard deviations, got {vmax}.")
        self.image_key, self.map_key = image_key, map_key
        self.output_dir = Path(output_dir)
        self.threshold = threshold
        self.slice_axis = slice_axis
        self.vmax = vmax

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the picture of one case.

        Args:
            data: The decollated dictionary: `case`, the image and the map; optional are `anomaly_score`,
                `case_threshold`, `lesion`, shape (1, H, W) or (1, H, W, D), and `slice_scores`, a dictionary from axial
                (axis 2), coronal (0) or sagittal (1) to one score per slice, NaN where it was skipped.

        Returns:
            The dictionary, unchanged.
        """
        d = dict(data)
        case = case_file_name(d)
        threshold = finite_threshold(self.threshold, d, "map_threshold")
        vmax = self.vmax if self.vmax is not None else 2 * max(threshold, 3.0)

        shape = self._common_shape(d, case)
        image = d[self.image_key]
        # a sample of an image that is large, which needs no copy of it
        grey = Normalize(*np.nanpercentile(_sample(to_numpy(image)[0]), [0.5, 99.5]))
        axis, index = self._slice(d, shape, case) if len(shape) == 3 else (self.slice_axis, None)
        title = [case, *_place(image, axis, index), *_verdict(d)]
        with alone_if_large(d[self.map_key].shape):
            layers = self._layers(d, axis, index)
            scales = Scales(grey, threshold, vmax, *_picture_geometry(image, axis))
            figure = draw_panels(layers, scales, "   |   ".join(title))
            save_picture(figure, self.output_dir / f"{case}_overlay.png")
        return d

    def _layers(self, data: Mapping[Hashable, Any], axis: int, index: int | None) -> Layers:
        """What is drawn of the slice: of a large picture the mean of grey levels, the maximum of maps and lesions."""
        image, anomaly_map = data[self.image_key], data[self.map_key]
        reconstruction, lesion = data.get(self.reconstruction_key), data.get("lesion")
        return Layers(
            block_means(_picture(image, axis, index)),
            block_maxima(_picture(anomaly_map, axis, index)),
            None if reconstruction is None else block_means(_picture(reconstruction, axis, index)),
            None if lesion is None else block_maxima(_picture(lesion, axis, index)),
        )

    def _common_shape(self, data: Mapping[Hashable, Any], case: str) -> tuple[int, ...]:
        """The spatial shape of all that is drawn."""
        shape = tuple(data[self.image_key].shape[1:])
        optional = [key for key in (self.reconstruction_key, "lesion") if key in data]
        for key in (self.image_key, self.map_key, *optional):
            own = tuple(data[key].shape)
            if len(own) not in (3, 4) or own[1:] != shape:
                raise ValueError(
                    f"'{key}' of case '{case}' has to be of shape (C, H, W) or (C, H, W, D) with the image's "
                    f"{shape}, got {own}: write overlays before Invertd."
                )
        return shape

    def _slice(self, data: Mapping[Hashable, Any], shape: tuple[int, ...], case: str) -> tuple[int, int]:
        """Spatial axis and index of the slice to show."""
        if "slice_scores" in data:
            if not isinstance(data["slice_scores"], Mapping):
                raise TypeError(
                    f"'slice_scores' of case '{case}' has to be a dictionary such as {{'axial': scores}}, "
                    f"got {type(data['slice_scores']).__name__}."
                )
            by_plane = data["slice_scores"]
            if not by_plane or not by_plane.keys() <= PLANES.keys():
                raise ValueError(f"'slice_scores' of case '{case}' has planes of {list(PLANES)}, got {list(by_plane)}.")
            found = most_anomalous_slice(by_plane)
            name = next(iter(by_plane)) if found is None else found[0]
            axis, scores = PLANES[name].axis, to_numpy(by_plane[name])
            if scores.shape != (shape[axis],):
                raise ValueError(
                    f"'slice_scores' of case '{case}' has to be of shape ({shape[axis]},) for '{name}', one "
                    f"score per slice along axis {axis}, got {scores.shape}."
                )
            if found is not None:
                return axis, found[1]
        else:
            axis = self.slice_axis
        volume = to_numpy(assembled(data[self.map_key]))[0]
        # NaN, where the map is unknown, is not the largest value, and nothing is if there is no other
        return axis, int(np.unravel_index(np.nan_to_num(volume, nan=-np.inf).argmax(), volume.shape)[axis])


def finite_threshold(given: float | None, data: Mapping[Hashable, Any], name: str) -> float:
    """A threshold that was given, or else that of the case's model.

    Raises:
        ValueError: it is not finite.
    """
    number = float(data[name] if given is None else given)
    if not np.isfinite(number):
        raise ValueError(f"threshold has to be finite, got {number}: use a calibrated model.")
    return number


def _sample(image: Array) -> Array:
    """Every n-th voxel along each axis, about as many as needed: to sort all takes longer than to draw."""
    step = max(1, round((image.size / _SAMPLED) ** (1 / image.ndim)))
    return image[(slice(None, None, step),) * image.ndim]


def _picture(value: Any, axis: int, index: int | None) -> Array:
    """The first channel of a slice across a spatial axis, as it stands upright; a 2D image has none to choose."""
    if isinstance(value, DeferredMap):
        value = value.slice(axis, index or 0)
    elif index is not None:
        value = torch.as_tensor(value).select(1 + axis, index)
    picture = to_numpy(value)[0]
    picture = picture if index is None else _upright(picture, axis)
    single: Array = picture.astype(np.float32, copy=False)
    return single


def _upright(picture: Array, axis: int) -> Array:
    """A slice across an axis of the volume, its last axis to superior unless that is cut: now from top to bottom."""
    return picture if axis == 2 else picture.T[::-1]


def _has_sides(image: Any, axis: int) -> bool:
    """Whether the affine is known: that of a bare picture, one slice thick, is not; an identity stands for none."""
    return (
        isinstance(image, MetaTensor)
        and image.ndim == 4
        and image.shape[1 + axis] > 1
        and not np.array_equal(ras_affine(image.affine, image.meta), np.eye(4))
    )


def _place(image: Any, axis: int, index: int | None) -> list[str]:
    """Where the slice lies in its file, if it is one of several."""
    (plane,) = (name for name, plane in PLANES.items() if plane.axis == axis)
    places = slice_places(image, plane)
    return [str(places[index])] if places and index is not None else []


def _verdict(data: Mapping[Hashable, Any]) -> list[str]:
    """The score of the case and what follows from it, as far as they are known."""
    if "anomaly_score" not in data:
        return []
    score = float(data["anomaly_score"])
    if "case_threshold" not in data:
        return [f"case score {score:.2f}"]
    threshold = float(data["case_threshold"])
    verdict = "abnormal" if score > threshold else "normal"
    if "map_score" in data and is_diffuse(score, float(data["map_score"]), threshold):
        verdict += " as a whole, by its global term"
    return [f"case score {score:.2f}, threshold {threshold:.2f}: {verdict}"]


def _picture_geometry(image: Any, slice_axis: int) -> tuple[float, str]:
    """Height of a pixel over its width, and the letters at top, bottom, left and right, if known."""
    if not isinstance(image, MetaTensor):
        return 1.0, ""
    turned = image.ndim == 4 and slice_axis != 2
    axes = [2, 1 - slice_axis] if turned else [0, 1]  # of rows and columns
    affine = ras_affine(image.affine, image.meta)
    row, column = np.linalg.norm(affine[:-1, axes], axis=0)
    letters = ""
    if _has_sides(image, slice_axis):
        codes = nib.aff2axcodes(affine)
        down, right = codes[axes[0]], codes[axes[1]]
        down = OPPOSITE[down] if turned else down
        letters = OPPOSITE[down] + down + OPPOSITE[right] + right
    return float(row / column), letters

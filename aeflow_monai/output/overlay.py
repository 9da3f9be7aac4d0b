"""The overlay: a picture of the image with the anomaly map and its outline at the threshold."""

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
_SAMPLED = 10**6  # voxels from which the grey scale is estimated


class WriteOverlayd(MapTransform):  # type: ignore[misc]
    """Write a picture of the image, the anomaly map over it, and the outline of the map at the threshold.

    The file is `<output_dir>/<case>_overlay.png`. The arrays are taken in the network's orientation, (C, rows, columns,
    slices), before any inversion: `data[..., k]` is already an upright picture (rows from anterior to posterior,
    columns from the patient's right to the left). Coronal and sagittal slices are turned upright, superior on top.
    Letters at the edges name the sides, if the image has an affine. Pixels are shown with their physical proportions. A
    picture of more than 2048 rows or columns is downsampled to 640 at most, since a panel has fewer pixels: by the mean
    of grey levels and the maximum of map values.

    Colours have the fixed scale [0, vmax], in standard deviations of normals, independent of the image, so that
    pictures can be compared. For a volume, the slice with the largest score along the first axis of `slice_scores` is
    shown, or that with the largest map value without this key. The title has the place of the slice in its file, see
    `SlicePlace`, and the case's `anomaly_score`, `case_threshold` and verdict, if the data has them. The outline of
    `lesion` is drawn if the data has it.

    Args:
        image_key: Key of the image, shape (C, H, W) or (C, H, W, D), of which the first channel is shown.
        map_key: Key of the anomaly map, shape (1, H, W) or (1, H, W, D), in standard deviations; may be deferred.
        output_dir: Folder to write to, created if it is missing.
        threshold: Map value of the outline, in standard deviations; if None, the model's threshold, "map_threshold" of
            the case.
        slice_axis: Spatial axis along which a volume without `slice_scores` is sliced, 0 to 2.
        vmax: Map value of the brightest colour, in standard deviations; by default 2 * max(threshold, 3).
        reconstruction_key: Key of the reconstruction, shown beside the image on its grey scale; left out if None.

    Raises:
        ValueError: If `slice_axis` or `vmax` is out of range; when called, if the case is not a valid file name, if the
            threshold is not finite, if shapes do not match, or if the axis of the scores is unknown.
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
        # estimated from a sample, without a copy of a large image
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
        """Return the layers of the slice, downsampled if large: means of grey levels, maxima of maps and lesions."""
        image, anomaly_map = data[self.image_key], data[self.map_key]
        reconstruction, lesion = data.get(self.reconstruction_key), data.get("lesion")
        return Layers(
            block_means(_picture(image, axis, index)),
            block_maxima(_picture(anomaly_map, axis, index)),
            None if reconstruction is None else block_means(_picture(reconstruction, axis, index)),
            None if lesion is None else block_maxima(_picture(lesion, axis, index)),
        )

    def _common_shape(self, data: Mapping[Hashable, Any], case: str) -> tuple[int, ...]:
        """Return the spatial shape of all layers."""
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
        """Return the spatial axis and index of the slice to show."""
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
        # NaN, where the map is unknown, is never the largest value, even if there is no other
        return axis, int(np.unravel_index(np.nan_to_num(volume, nan=-np.inf).argmax(), volume.shape)[axis])


def finite_threshold(given: float | None, data: Mapping[Hashable, Any], name: str) -> float:
    """Return the given threshold, or that of the case's model.

    Raises:
        ValueError: it is not finite.
    """
    number = float(data[name] if given is None else given)
    if not np.isfinite(number):
        raise ValueError(f"threshold has to be finite, got {number}: use a calibrated model.")
    return number


def _sample(image: Array) -> Array:
    """Return every n-th voxel along each axis, since sorting all of them takes longer than drawing."""
    step = max(1, round((image.size / _SAMPLED) ** (1 / image.ndim)))
    return image[(slice(None, None, step),) * image.ndim]


def _picture(value: Any, axis: int, index: int | None) -> Array:
    """Return the first channel of a slice across a spatial axis, upright; a 2D image is the only slice."""
    if isinstance(value, DeferredMap):
        value = value.slice(axis, index or 0)
    elif index is not None:
        value = torch.as_tensor(value).select(1 + axis, index)
    picture = to_numpy(value)[0]
    picture = picture if index is None else _upright(picture, axis)
    single: Array = picture.astype(np.float32, copy=False)
    return single


def _upright(picture: Array, axis: int) -> Array:
    """Turn a slice across an axis of the volume upright, so that superior is on top."""
    return picture if axis == 2 else picture.T[::-1]


def _has_sides(image: Any, axis: int) -> bool:
    """Return whether the affine is known: not for a 2D image file, one slice thick, or for an identity."""
    return (
        isinstance(image, MetaTensor)
        and image.ndim == 4
        and image.shape[1 + axis] > 1
        and not np.array_equal(ras_affine(image.affine, image.meta), np.eye(4))
    )


def _place(image: Any, axis: int, index: int | None) -> list[str]:
    """Return the place of the slice in its file, if it is one of several."""
    (plane,) = (name for name, plane in PLANES.items() if plane.axis == axis)
    places = slice_places(image, plane)
    return [str(places[index])] if places and index is not None else []


def _verdict(data: Mapping[Hashable, Any]) -> list[str]:
    """Return the score of the case and its verdict, if known."""
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
    """Return height over width of a pixel, and the letters at top, bottom, left and right, if known."""
    if not isinstance(image, MetaTensor):
        return 1.0, ""
    turned = image.ndim == 4 and slice_axis != 2
    axes = [2, 1 - slice_axis] if turned else [0, 1]  # axes of rows and columns
    affine = ras_affine(image.affine, image.meta)
    row, column = np.linalg.norm(affine[:-1, axes], axis=0)
    letters = ""
    if _has_sides(image, slice_axis):
        codes = nib.aff2axcodes(affine)
        down, right = codes[axes[0]], codes[axes[1]]
        down = OPPOSITE[down] if turned else down
        letters = OPPOSITE[down] + down + OPPOSITE[right] + right
    return float(row / column), letters

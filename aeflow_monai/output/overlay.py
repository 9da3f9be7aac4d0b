"""The overlay: a picture of the image, of the anomaly map over it, and of what exceeds the threshold."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from monai.data import MetaTensor
from monai.transforms import MapTransform
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aeflow_monai.about import DISCLAIMER
from aeflow_monai.files import case_file_name, replacing
from aeflow_monai.geometry import PLANES, format_position, ras_affine, slice_positions
from aeflow_monai.marks import MARK
from aeflow_monai.output.case_score import most_anomalous_slice
from aeflow_monai.output.maps import to_numpy

__all__ = ["WriteOverlayd"]

Array = npt.NDArray[Any]

OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_SAMPLED = 10**6  # voxels that tell the grey scale
OUTLINE, LESION = "#ff8c1a", "#33d6ff"  # told apart by colour-blind readers too


class WriteOverlayd(MapTransform):  # type: ignore[misc]
    """Write a picture of the image, the anomaly map over it, and the outline of what exceeds the threshold.

    The file is `<output_dir>/<case>_overlay.png`. The arrays are taken in the network's orientation,
    (C, rows, columns, slices), before any inversion: `data[..., k]` is an upright picture already (rows from
    anterior to posterior, columns from the patient's right to the left). Coronal and sagittal slices are
    turned upright, superior on top. Letters at the edges tell the sides, if the image has an affine. Pixels
    are shown with their physical proportions.

    Colours stand on the fixed scale [0, vmax], in standard deviations of the normals, never on that of one
    image, so that two pictures compare. Of a volume, the slice with the largest score along the first axis of
    `slice_scores` is shown, or the one with the largest map value if there is no such key. `anomaly_score` is
    printed and the outline of `lesion` drawn, if they are in the data. Slices are counted from 1; beside
    the number stands the slice's position as in `WriteProfiled`, if the image has an affine.

    Args:
        image_key: Key of the image, shape (C, H, W) or (C, H, W, D), of which the first channel is shown.
        map_key: Key of the anomaly map, shape (1, H, W) or (1, H, W, D), in standard deviations.
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
                `lesion`, shape (1, H, W) or (1, H, W, D), and `slice_scores`, a dictionary from axial
                (axis 2), coronal (0) or sagittal (1) to one score per slice, NaN where it was skipped.

        Returns:
            The dictionary, unchanged.
        """
        d = dict(data)
        case = case_file_name(d)
        threshold = finite_threshold(self.threshold, d, "map_threshold")
        vmax = self.vmax if self.vmax is not None else 2 * max(threshold, 3.0)

        layers = {self.image_key: to_numpy(d[self.image_key])[0], self.map_key: to_numpy(d[self.map_key])[0]}
        if self.reconstruction_key is not None:
            layers[self.reconstruction_key] = to_numpy(d[self.reconstruction_key])[0]
        if "lesion" in d:
            layers["lesion"] = to_numpy(d["lesion"])[0]
        shape = layers[self.image_key].shape
        for key, layer in layers.items():
            if layer.ndim not in (2, 3) or layer.shape != shape:
                raise ValueError(
                    f"'{key}' of case '{case}' has to be of shape (C, H, W) or (C, H, W, D) with the image's "
                    f"{shape}, got {tuple(d[key].shape)}: write overlays before Invertd."
                )
        grey = Normalize(*np.nanpercentile(_sample(layers[self.image_key]), [0.5, 99.5]))

        title, axis = [case], self.slice_axis
        if len(shape) == 3:
            axis, index = self._slice(d, layers[self.map_key], case)
            title.append(f"slice {index + 1} of {shape[axis]}{_place(d[self.image_key], axis, index)}")
            layers = {key: _upright(np.moveaxis(layer, axis, 0)[index], axis) for key, layer in layers.items()}
        if "anomaly_score" in d:
            title.append(f"anomaly score {float(d['anomaly_score']):.2f}")
        figure = _draw(
            layers[self.image_key],
            layers[self.map_key],
            layers.get("lesion"),
            layers.get(self.reconstruction_key or ""),
            grey=grey,
            threshold=threshold,
            vmax=vmax,
            title="   |   ".join(title),
            geometry=_picture_geometry(d[self.image_key], axis),
        )
        save_picture(figure, self.output_dir / f"{case}_overlay.png")
        return d

    def _slice(self, data: Mapping[Hashable, Any], volume: Array, case: str) -> tuple[int, int]:
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
            if scores.shape != (volume.shape[axis],):
                raise ValueError(
                    f"'slice_scores' of case '{case}' has to be of shape ({volume.shape[axis]},) for '{name}', one "
                    f"score per slice along axis {axis}, got {scores.shape}."
                )
            if found is not None:
                return axis, found[1]
        else:
            axis = self.slice_axis
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


def _place(image: Any, axis: int, index: int) -> str:
    """The position of a slice, in brackets, if it is known."""
    if not _has_sides(image, axis):
        return ""
    affine = ras_affine(image.affine, image.meta)
    world = int(nib.io_orientation(affine)[axis, 0])
    position = slice_positions(affine, tuple(image.shape[1:]), axis, world)[index]
    return f" ({format_position('RAS'[world], position)})"


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


def _colours() -> ListedColormap:
    """Transparent up to a quarter of the scale, nearly opaque from two thirds on."""
    share = np.linspace(0, 1, 256)
    colours = matplotlib.colormaps["inferno"](0.25 + 0.75 * share)
    colours[:, 3] = 0.85 * np.clip((share - 0.25) / 0.4, 0, 1)
    return ListedColormap(colours, name="anomaly")


def new_figure(size: tuple[float, float], title: str) -> Figure:
    """An empty picture on black, width and height in inches, as a viewing station shows it."""
    figure = Figure(figsize=size, dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    # A case may be called "a$b$c".
    figure.suptitle(title, color="white", fontsize=13, parse_math=False, y=1 - 0.06 / size[1], va="top")
    figure.supxlabel(DISCLAIMER, color="0.6", fontsize=8, y=0.06 / size[1], va="bottom")
    return figure


def add_panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place in inches."""
    across, along = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / along, width / across, height / along))


def save_picture(figure: Figure, path: Path) -> None:
    """Write a PNG; `savefig` would draw twice, and the default compression takes longer than to draw."""
    canvas: Any = figure.canvas
    canvas.draw()
    picture = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])  # nothing shines through
    texts = PngInfo()
    texts.add_text("Software", MARK)
    with replacing(path) as unfinished:
        Image.fromarray(picture).save(unfinished, compress_level=1, dpi=(figure.dpi, figure.dpi), pnginfo=texts)


def _outline(axis: Any, values: Array, level: float, **style: Any) -> None:
    if np.nanmin(values) < level <= np.nanmax(values):  # otherwise there is none, and matplotlib warns
        axis.contour(values, levels=[level], **style)


def _draw(
    image: Array,
    anomaly_map: Array,
    lesion: Array | None,
    reconstruction: Array | None,
    *,
    grey: Normalize,
    threshold: float,
    vmax: float,
    title: str,
    geometry: tuple[float, str],
) -> Figure:
    """The panels side by side, and the scale of the colours."""
    aspect, letters = geometry
    ratio = aspect * image.shape[0] / image.shape[1]
    # Coloured before they are enlarged, and once, not once a panel.
    coloured = [
        matplotlib.colormaps["gray"](grey(layer), bytes=True) for layer in (image, reconstruction) if layer is not None
    ]
    greys = dict(zip(("Image", "Reconstruction"), coloured, strict=False))
    panels = {**greys, "Anomaly map": coloured[0], f"Map \N{GREATER-THAN OR EQUAL TO} {threshold:.1f} SD": coloured[0]}
    # In inches, since a layout engine draws everything twice.
    gap, bar_width, top, bottom = 0.08, 0.95, 0.6, 0.32
    size = width, height = 4.4 * len(panels), float(np.clip(4 * ratio, 2, 8)) + 1.3
    cell_width = (width - bar_width) / len(panels) - gap
    cell_height = height - top - bottom
    across, along = min(cell_width, cell_height / ratio), min(cell_height, cell_width * ratio)
    figure = new_figure(size, title)
    axes = []
    for number, (name, picture) in enumerate(panels.items()):
        left = gap + number * (cell_width + gap) + (cell_width - across) / 2
        axis = add_panel(figure, left, bottom + (cell_height - along) / 2, across, along)
        axis.imshow(picture, aspect="auto")
        axis.set_title(name, color="0.85", fontsize=11, y=1)  # a given y need not be searched for
        axis.set_axis_off()
        axes.append(axis)
    over, outlined = axes[-2:]
    places = (
        (0.5, 0.98, "center", "top"),
        (0.5, 0.02, "center", "bottom"),
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
    )
    for letter, (x, y, ha, va) in zip(letters, places, strict=False):
        axes[0].text(x, y, letter, color="0.85", ha=ha, va=va, transform=axes[0].transAxes)

    shown = over.imshow(anomaly_map, cmap=_colours(), norm=Normalize(0, vmax, clip=True), aspect="auto")
    _outline(outlined, anomaly_map, threshold, colors=OUTLINE, linewidths=1.4)
    if lesion is not None:
        _outline(outlined, lesion, 0.5, colors=LESION, linewidths=1.2, linestyles="dashed")
        lines = [Line2D([], [], color=OUTLINE), Line2D([], [], color=LESION, linestyle="dashed")]
        outlined.legend(
            lines, ["found", "lesion"], loc="lower right", fontsize=8, labelcolor="white", facecolor="black"
        )

    room = add_panel(figure, width - bar_width + 0.15, bottom, 0.22, cell_height)
    bar = figure.colorbar(shown, cax=room, extend="max")
    bar.set_label("anomaly (SD of normals)", color="0.85")
    bar.ax.tick_params(colors="0.85")
    bar.ax.set_facecolor("black")
    bar.outline.set_edgecolor("0.5")
    if 0 < threshold < vmax:
        bar.ax.axhline(threshold, color=OUTLINE, linewidth=1.8)
    return figure

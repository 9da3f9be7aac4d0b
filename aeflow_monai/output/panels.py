"""The panels of an overlay: the image, its reconstruction, the map over it, and its outline at the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aeflow_monai.about import DISCLAIMER
from aeflow_monai.files import replacing
from aeflow_monai.marks import MARK

__all__ = [
    "OUTLINE",
    "Layers",
    "Scales",
    "add_panel",
    "block_maxima",
    "block_means",
    "draw_panels",
    "new_figure",
    "save_picture",
]

Array = npt.NDArray[Any]

OUTLINE, LESION = "#ff8c1a", "#33d6ff"  # can be distinguished with colour blindness
_SIDE = 2048  # rows or columns up to which pictures are drawn at full resolution
_DRAWN = 640  # size of larger pictures: a panel has fewer pixels, and drawing many takes much memory
# In inches.
_GAP, _BAR_WIDTH, _TOP, _BOTTOM = 0.08, 0.95, 0.6, 0.32


class Layers(NamedTuple):
    """Arrays of a slice to draw, (rows, columns) each.

    Attributes:
        image: grey levels.
        anomaly_map: in standard deviations.
        reconstruction: on the grey scale of the image; None for no such panel.
        lesion: above 0.5 in lesions; None if unknown.
    """

    image: Array
    anomaly_map: Array
    reconstruction: Array | None = None
    lesion: Array | None = None


class Scales(NamedTuple):
    """Scales of the values and the pixels of layers.

    Attributes:
        grey: grey scale of the image.
        threshold: map threshold, in standard deviations.
        vmax: map value of the brightest colour.
        aspect: height of a pixel over its width.
        letters: sides at top, bottom, left and right, if known.
    """

    grey: Normalize
    threshold: float
    vmax: float
    aspect: float
    letters: str


def draw_panels(layers: Layers, scales: Scales, title: str) -> Figure:
    """Draw the panels side by side, with the colour bar."""
    # Coloured before they are enlarged, and once for all panels.
    coloured = [
        matplotlib.colormaps["gray"](scales.grey(layer), bytes=True)
        for layer in (layers.image, layers.reconstruction)
        if layer is not None
    ]
    greys = dict(zip(("Image", "Reconstruction"), coloured, strict=False))
    over_it = f"Map \N{GREATER-THAN OR EQUAL TO} {scales.threshold:.1f} SD"
    figure, axes = _grey_panels({**greys, "Anomaly map": coloured[0], over_it: coloured[0]}, layers, scales, title)
    over, outlined = axes[-2:]
    _letter_sides(axes[0], scales.letters)
    colours = Normalize(0, scales.vmax, clip=True)
    shown = over.imshow(layers.anomaly_map, cmap=_colours(), norm=colours, aspect="auto")
    _outline(outlined, layers.anomaly_map, scales.threshold, colors=OUTLINE, linewidths=1.4)
    if layers.lesion is not None:
        _outline(outlined, layers.lesion, 0.5, colors=LESION, linewidths=1.2, linestyles="dashed")
        lines = [Line2D([], [], color=OUTLINE), Line2D([], [], color=LESION, linestyle="dashed")]
        outlined.legend(
            lines, ["found", "lesion"], loc="lower right", fontsize=8, labelcolor="white", facecolor="black"
        )
    _colour_bar(figure, shown, scales)
    return figure


def _grey_panels(panels: dict[str, Array], layers: Layers, scales: Scales, title: str) -> tuple[Figure, list[Any]]:
    """Create a figure with a grey panel for each array; sizes in inches, since a layout engine would draw twice."""
    ratio = scales.aspect * layers.image.shape[0] / layers.image.shape[1]
    size = width, height = 4.4 * len(panels), float(np.clip(4 * ratio, 2, 8)) + 1.3
    cell_width = (width - _BAR_WIDTH) / len(panels) - _GAP
    cell_height = height - _TOP - _BOTTOM
    across, along = min(cell_width, cell_height / ratio), min(cell_height, cell_width * ratio)
    figure = new_figure(size, title)
    axes = []
    for number, (name, picture) in enumerate(panels.items()):
        left = _GAP + number * (cell_width + _GAP) + (cell_width - across) / 2
        axis = add_panel(figure, left, _BOTTOM + (cell_height - along) / 2, across, along)
        axis.imshow(picture, aspect="auto")
        axis.set_title(name, color="0.85", fontsize=11, y=1)  # a given y saves searching for a free one
        axis.set_axis_off()
        axes.append(axis)
    return figure, axes


def _letter_sides(axis: Any, letters: str) -> None:
    places = (
        (0.5, 0.98, "center", "top"),
        (0.5, 0.02, "center", "bottom"),
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
    )
    for letter, (x, y, ha, va) in zip(letters, places, strict=False):
        axis.text(x, y, letter, color="0.85", ha=ha, va=va, transform=axis.transAxes)


def _colour_bar(figure: Figure, shown: Any, scales: Scales) -> None:
    width, height = figure.get_size_inches()
    room = add_panel(figure, width - _BAR_WIDTH + 0.15, _BOTTOM, 0.22, height - _TOP - _BOTTOM)
    bar = figure.colorbar(shown, cax=room, extend="max")
    bar.set_label("anomaly (SD of normals)", color="0.85")
    bar.ax.tick_params(colors="0.85")
    bar.ax.set_facecolor("black")
    bar.outline.set_edgecolor("0.5")
    if 0 < scales.threshold < scales.vmax:
        bar.ax.axhline(scales.threshold, color=OUTLINE, linewidth=1.8)


def block_means(layer: Array) -> Array:
    """Downsample a layer (rows, columns) that exceeds 2048 to at most 640, by the mean of each block."""
    factor = _factor(layer)
    return layer if factor == 1 else _blocks(np.add, layer, factor) / _sizes(layer.shape, factor)


def block_maxima(layer: Array) -> Array:
    """Downsample a layer (rows, columns) as `block_means` does, by the maximum of each block."""
    factor = _factor(layer)
    return layer if factor == 1 else _blocks(np.maximum, layer, factor)


def _factor(layer: Array) -> int:
    """Return the rows and columns of a block."""
    side = max(layer.shape)
    return 1 if side <= _SIDE else -(-side // _DRAWN)


def _blocks(function: np.ufunc, layer: Array, factor: int) -> Array:
    """Reduce each block of a layer without copying it; those at the ends may be smaller."""
    rows, columns = (np.arange(0, size, factor) for size in layer.shape)
    blocks: Array = function.reduceat(function.reduceat(layer, rows, axis=0), columns, axis=1)
    return blocks


def _sizes(shape: Sequence[int], factor: int) -> Array:
    """Return the number of pixels of each block."""
    rows, columns = (np.diff([*range(0, size, factor), size]) for size in shape)
    return np.outer(rows, columns).astype(np.float32)


def _colours() -> ListedColormap:
    """Return colours that are transparent up to a quarter of the scale, and nearly opaque from two thirds on."""
    share = np.linspace(0, 1, 256)
    colours = matplotlib.colormaps["inferno"](0.25 + 0.75 * share)
    colours[:, 3] = 0.85 * np.clip((share - 0.25) / 0.4, 0, 1)
    return ListedColormap(colours, name="anomaly")


def new_figure(size: tuple[float, float], title: str) -> Figure:
    """Create an empty figure on black, as on a viewing station, with width and height in inches."""
    figure = Figure(figsize=size, dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    # a case's name may contain "$"
    figure.suptitle(title, color="white", fontsize=13, parse_math=False, y=1 - 0.06 / size[1], va="top")
    figure.supxlabel(DISCLAIMER, color="0.6", fontsize=8, y=0.06 / size[1], va="bottom")
    return figure


def add_panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Any:
    """Add axes at a place in inches."""
    across, along = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / along, width / across, height / along))


def save_picture(figure: Figure, path: Path) -> None:
    """Write a PNG; `savefig` would draw twice, and the default compression takes longer than drawing."""
    canvas: Any = figure.canvas
    canvas.draw()
    picture = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])  # without the alpha channel
    texts = PngInfo()
    texts.add_text("Software", MARK)
    with replacing(path) as unfinished:
        Image.fromarray(picture).save(unfinished, compress_level=1, dpi=(figure.dpi, figure.dpi), pnginfo=texts)


def _outline(axis: Any, values: Array, level: float, **style: Any) -> None:
    if np.nanmin(values) < level <= np.nanmax(values):  # otherwise there is no outline, and matplotlib warns
        axis.contour(values, levels=[level], **style)

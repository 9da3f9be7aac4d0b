"""The slice profile: the score of each slice of a volume against its position, as a table and a picture."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from monai.data import MetaTensor
from monai.transforms import MapTransform

from aeflow_monai.files import case_file_name
from aeflow_monai.geometry import PLANES, ras_affine
from aeflow_monai.output.maps import to_numpy
from aeflow_monai.output.overlay import finite_threshold
from aeflow_monai.output.panels import OUTLINE, add_panel, new_figure, save_picture
from aeflow_monai.output.slice_place import SlicePlace, place_row, slice_places
from aeflow_monai.result_files import PLACE_COLUMNS
from aeflow_monai.result_tables import Table

__all__ = ["WriteProfiled"]

Array = npt.NDArray[Any]
Profile = tuple[list[SlicePlace], Array]

CURVE, TEXT = "#9ecbff", "0.85"


class WriteProfiled(MapTransform):  # type: ignore[misc]
    """Write the scores of a volume's slices against their positions, as a table and a picture.

    The files are `<output_dir>/<case>_slices.csv` and `<output_dir>/<case>_slices.png`. 2D images and axes of one slice
    have no profile; nothing is written for them.

    The table has a row for each slice of each plane: axial slices from inferior to superior, coronal ones from anterior
    to posterior, sagittal ones from the patient's right to the left.

    - `plane`, `axis`, `slice_from_0`, `position_mm`: place of the slice in the file, see `SlicePlace`. The position
      rises towards superior, anterior and right. In an oblique volume, positions of neighbours differ by less than the
      distance of their planes.
    - `anomaly_score`: in standard deviations of the normals; empty where the slice was skipped.
    - `prediction`: 1 above the threshold, 0 elsewhere.
    - `skipped`: 1 where the slice was skipped.
    - `global_term`: how unusual the slice is as a whole, which is a part of the score; empty if unknown.

    In the picture, slices run from left to right in that order. Skipped slices are gaps on grey.

    Args:
        image_key: Key of the preprocessed image, a `MetaTensor` (C, H, W, D) in orientation PLS.
        output_dir: Folder to write to, created if it is missing.
        threshold: Score above which a slice counts as anomalous; if None, the model's threshold, "slice_threshold" of
            the case.

    Raises:
        ValueError: When called, if the case is not a valid file name, if the threshold is not finite, if an axis is
            unknown, if there is not one score per slice, if one is infinite, or if the image is not in orientation PLS.
        TypeError: When called, if the image is not a `MetaTensor`, so that its affine is unknown, or if the slice
            scores are not a dictionary.

    Example:
        >>> import tempfile, torch
        >>> affine = torch.tensor([[0.0, -1, 0, 16], [-1, 0, 0, 16], [0, 0, 5, -10], [0, 0, 0, 1]])
        >>> case = {"case": "sub-01", "image": MetaTensor(torch.rand(1, 32, 32, 3), affine=affine)}
        >>> case["slice_scores"] = {"axial": torch.tensor([0.5, 4.0, float("nan")])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = WriteProfiled("image", folder, threshold=2.0)(case)
        ...     print(Path(folder, "sub-01_slices.csv").read_text(), end="")
        plane,axis,slice_from_0,position_mm,anomaly_score,prediction,skipped,global_term
        axial,k,0,-10.0,0.5,0,0,
        axial,k,1,-5.0,4.0,1,0,
        axial,k,2,0.0,,0,1,
    """

    def __init__(self, image_key: str, output_dir: str | Path, threshold: float | None = None) -> None:
        super().__init__(image_key)
        self.image_key = image_key
        self.output_dir = Path(output_dir)
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the profile of one case.

        Args:
            data: The decollated dictionary: `case`, the image, and `slice_scores`, a dictionary from axial, coronal or
                sagittal to one score per slice along that axis, NaN where the slice was skipped; optionally
                `global_terms`, likewise.

        Returns:
            The dictionary, unchanged.
        """
        d = dict(data)
        case = case_file_name(d)
        threshold = finite_threshold(self.threshold, d, "slice_threshold")
        profiles = _profiles(d[self.image_key], d["slice_scores"], case)
        if not profiles:
            return d
        table = Table(
            self.output_dir / f"{case}_slices.csv",
            [*PLACE_COLUMNS, "anomaly_score", "prediction", "skipped", "global_term"],
        )
        for plane, (places, scores) in profiles.items():
            known = d.get("global_terms", {}).get(plane)
            terms = np.full(len(scores), np.nan) if known is None else to_numpy(known)
            for place, score, term in zip(places, scores, terms, strict=True):
                empty = np.isnan(score)
                table.append(
                    {
                        **place_row(place),
                        "anomaly_score": "" if empty else score,
                        "prediction": int(score > threshold),
                        "skipped": int(empty),
                        "global_term": "" if np.isnan(term) else term,
                    }
                )
        table.finish()
        save_picture(_draw(profiles, threshold, case), self.output_dir / f"{case}_slices.png")
        return d


def _profiles(image: Any, slice_scores: Any, case: str) -> dict[str, Profile]:
    """Return places and scores along each axis that has more than one slice."""
    if not isinstance(slice_scores, Mapping):
        raise TypeError(
            f"'slice_scores' of case '{case}' has to be a dictionary such as {{'axial': scores}}, "
            f"got {type(slice_scores).__name__}."
        )
    unknown = [axis for axis in slice_scores if axis not in PLANES]
    if unknown:
        raise ValueError(f"'slice_scores' of case '{case}' has axes of {list(PLANES)}, got {unknown}.")
    if image.ndim == 3 or image.shape[-1] == 1:
        return {}
    if not isinstance(image, MetaTensor):
        raise TypeError(
            f"the image of case '{case}' has to be a MetaTensor, got {type(image).__name__}, whose affine is "
            "unknown: load it with LoadImaged."
        )
    shape, affine = tuple(image.shape[1:]), ras_affine(image.affine, image.meta)
    profiles = {}
    for axis, values in slice_scores.items():
        scores = to_numpy(values)
        if scores.shape != (shape[PLANES[axis].axis],) or np.isinf(scores).any():
            raise ValueError(
                f"'slice_scores' of case '{case}' has to hold {shape[PLANES[axis].axis]} finite numbers or NaN for "
                f"'{axis}', one per slice, got shape {scores.shape} and {int(np.isinf(scores).sum())} infinite."
            )
        world = PLANES[axis].world_axis
        # By sign, since at 45 degrees two anatomical axes are equally close.
        if affine[world, PLANES[axis].axis] * (1 if axis == "axial" else -1) <= 0:
            raise ValueError(
                f"the image of case '{case}' has to be in orientation PLS (rows to posterior, columns to left, slices "
                f"to superior), got affine {affine.round(3).tolist()}: apply Orientationd with axcodes='PLS' first."
            )
        if places := slice_places(image, axis):
            profiles[axis] = (places, scores)
    return profiles


def _draw(profiles: Mapping[str, Profile], threshold: float, case: str) -> Figure:
    """Draw a panel for each axis, on black like the overlay, with a common scale of scores."""
    # In inches, since a layout engine would draw twice.
    left, top, bottom, gap = 0.85, 1.0, 0.8, 1.17
    height = 1.1 + 3.2 * len(profiles)
    panel_height = (height - top - bottom - gap * (len(profiles) - 1)) / len(profiles)
    figure = new_figure((10, height), f"{case}   |   slice scores")
    shown = [0.0, threshold, *(score for _, scores in profiles.values() for score in scores if np.isfinite(score))]
    low, high = min(shown), max(shown)
    margin = 0.08 * (high - low or 1.0)
    for number, (places, scores) in enumerate(profiles.values()):
        above = top + number * (panel_height + gap)
        panel = add_panel(figure, left, height - above - panel_height, 7.05, panel_height)
        panel.set_ylim(low - margin, high + 2.5 * margin)
        _draw_axis(panel, places, scores, threshold, title_height=1 + 0.38 / panel_height)
    return figure


def _draw_axis(panel: Any, places: Sequence[SlicePlace], scores: Array, threshold: float, title_height: float) -> None:
    axis = places[0].plane
    positions = np.array([place.position_mm for place in places])
    step = positions[1] - positions[0]
    panel.set_facecolor("black")
    panel.set_xlim(positions[0] - step / 2, positions[-1] + step / 2)  # A and R decrease from left to right
    empty = np.isnan(scores)
    edges = np.flatnonzero(np.diff(empty, prepend=False, append=False))  # of each run: first, and last + 1
    for first, behind in edges.reshape(-1, 2):
        panel.axvspan(
            positions[0] + (first - 0.5) * step, positions[0] + (behind - 0.5) * step, color="0.2", linewidth=0
        )
    # A single slice between gaps has no line, so each is a dot too.
    panel.plot(positions, scores, color=CURVE, linewidth=1.6, marker="o", markersize=2.5, label="score")
    panel.axhline(threshold, color=OUTLINE, linewidth=1.2, linestyle="dashed", label=f"threshold {threshold:.2f}")
    if (scores > threshold).any():
        above = np.where(scores > threshold, scores, np.nan)
        panel.plot(positions, above, color=OUTLINE, linewidth=2, marker="o", markersize=3.5, label="above threshold")
    if empty.any():
        panel.axvspan(*[positions[0] - step] * 2, color="0.3", linewidth=0, label="skipped slice")
    title = "every slice was skipped"
    if not empty.all():
        peak = int(np.nanargmax(scores))
        panel.axvline(positions[peak], color="white", linewidth=0.8, linestyle="dotted")
        ring = {"marker": "o", "markersize": 11, "markeredgewidth": 1.6, "markerfacecolor": "none", "linestyle": "none"}
        panel.plot(positions[peak], scores[peak], markeredgecolor="white", label="most anomalous slice", **ring)
        title = f"most anomalous: {places[peak].short()}, slice score {scores[peak]:.2f}"
    panel.set_title(axis.capitalize(), color="white", fontsize=12, loc="left", y=title_height)
    panel.set_title(title, color="white", fontsize=10, loc="right", y=title_height)
    panel.set_xlabel(f"{PLANES[axis].letter} (mm)", color=TEXT)
    for x, side, end in ((0, "left", PLANES[axis].first), (1, "right", PLANES[axis].last)):
        panel.annotate(
            end,
            (x, 0),
            xytext=(0, -22),
            xycoords="axes fraction",
            textcoords="offset points",
            ha=side,
            va="top",
            color="white",
        )
    panel.set_ylabel("slice score (SD of normals)", color=TEXT)
    _number_slices(panel, places, positions)
    panel.tick_params(colors=TEXT)
    for spine in panel.spines.values():
        spine.set_edgecolor("0.5")
    panel.grid(color="0.22", linewidth=0.6)
    panel.set_axisbelow(True)
    legend = panel.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9, labelcolor=TEXT, facecolor="black")
    legend.get_frame().set_edgecolor("0.4")


def _number_slices(panel: Any, places: Sequence[SlicePlace], positions: Array) -> None:
    """Add the numbers of the file's slices along the top."""
    slope, offset = np.polyfit(positions, [place.slice_from_0 for place in places], 1)  # numbers are rounded
    if not slope:
        return
    top = panel.secondary_xaxis("top", functions=(lambda x: offset + slope * x, lambda n: (n - offset) / slope))
    top.set_xlabel(f"slice {places[0].axis} of the file, from 0", color="0.75", fontsize=9)
    top.xaxis.set_major_locator(MaxNLocator(integer=True))
    top.tick_params(colors="0.75", labelsize=8)
    top.spines["top"].set_edgecolor("0.5")

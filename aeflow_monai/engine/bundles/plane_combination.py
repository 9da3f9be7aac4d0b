"""How the maps of several planes make the scores of a volume, for programs without this package."""

from __future__ import annotations

from typing import Any

import torch

from aeflow_monai.data.slicer import Slicer
from aeflow_monai.geometry import stack_of
from aeflow_monai.score.score import EASE_MARGIN, Score

__all__ = ["combination_of", "combination_says"]

_TO_SIZE = {
    "resize": (
        "bilinearly between pixel centres, edges repeated; along a side that shrinks, with a triangle of twice the "
        "pixel size of the result (antialiasing)"
    ),
    "pad": "by cropping what was padded, and back by padding with 0, half of the margin before, rounded down",
}
_SAYS = (
    "aeflow_monai's docs/examples/onnx_planes_without_torch.py does all of this. The numbers are in combination. "
    "1. Run each plane's file on the slices of its plane; leave out a plane without any. "
    "2. Bring each anomaly_map from image_size to the slice's own size, {to_size}. Add it to a volume (X to posterior, "
    "Y to left, Z to superior) of 0 at the slice's place: axes names the volume's axes that slices, rows and columns "
    "run along; rows run backwards if row_step is -1. Divide each voxel by the number of planes that saw it, if any. "
    "This is the map of the volume; a voxel is abnormal above map_threshold. "
    "3. Cut it into the same slices again, and bring these to image_size. For each of top_fractions take the mean of "
    "this fraction of a slice's highest values (their number rounded up), subtract fraction_mean, and divide by "
    "fraction_std. The mean of these, plus ease_weight * max(ease - ease_margin, 0), is m of the slice. "
    "4. The score of a slice with the global term g is {of_slice}; it is abnormal above slice_threshold. "
    "5. Take the mean of the case_top_fraction of a plane's highest m (their number rounded up): M is its mean over "
    "the planes. G is the mean over the planes of the mean of a plane's g. The score of the case is {of_case}; it is "
    "abnormal above case_threshold."
)


def combination_says(score: Score, slicer: Slicer) -> str:
    """Describe in words how a score by the mean of several planes' maps is computed.

    Args:
        score: a score that was calibrated on the mean of the planes' maps.
        slicer: the slicing policy.

    Returns:
        Steps that name the numbers of `combination_of`.
    """
    return _SAYS.format(to_size=_TO_SIZE[slicer.fit], of_slice=score.formula("m", "g"), of_case=score.formula("M", "G"))


def combination_of(score: Score, slicer: Slicer) -> dict[str, Any]:
    """Return the numbers that a score by the mean of several planes' maps is computed with.

    Args:
        score: see `combination_says`.
        slicer: see `combination_says`.

    Returns:
        Values that JSON can hold. "planes" has the place of each plane's slices in a volume (X, Y, Z); "global_term" is
        None if no global term is joined.

    Example:
        >>> combination_of(Score(), Slicer(["coronal"]))["planes"]
        {'coronal': {'axes': [0, 2, 1], 'row_step': -1}}
    """
    term = score.global_term
    joins = {"weight": float(term.weight), "softness": float(term.softness), "bend": term.bend.tolist()}
    return {
        "planes": {
            plane: {"axes": _axes_of(plane), "row_step": 1 if plane == "axial" else -1} for plane in slicer.axes
        },
        "fit": slicer.fit,
        "image_size": list(slicer.image_size),
        "top_fractions": list(score.top_fractions),
        "fraction_mean": score.fraction_mean.tolist(),
        "fraction_std": score.fraction_std.tolist(),
        "ease_weight": score.ease_weight,
        "ease_margin": EASE_MARGIN,
        "case_top_fraction": score.case_top_fraction,
        "global_term": joins if score.knows_global_terms else None,
    }


def _axes_of(plane: str) -> list[int]:
    """Return the axes of a volume that slices, rows and columns of a plane run along."""
    numbered = torch.empty((7, 0, 1, 2), device="meta")  # each axis has its own number as its size
    slices, _, rows, columns = stack_of(numbered, plane).shape
    return [slices, rows, columns]

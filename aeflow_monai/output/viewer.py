"""Results of one case for a viewer: a mask or map, scores, and the most anomalous slice."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, to_affine_nd
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys
from torch import Tensor

from aeflow_monai.about import DISCLAIMER
from aeflow_monai.geometry import ras_affine
from aeflow_monai.output.case_score import most_anomalous_slice
from aeflow_monai.output.slice_place import SlicePlace, most_anomalous_place, place_row, slice_places

__all__ = ["ViewerResultd", "parse_threshold"]

OUTPUTS = ("mask", "map", "scaled_map")
CALIBRATED = "calibrated"
_BESIDE = ("ease", "global_terms")  # numbers per slice in addition to their scores


class ViewerResultd(MapTransform):  # type: ignore[misc]
    """Convert an anomaly map to the volume that a viewer shows, "pred", with numbers of the case, "result".

    The input is the output of `GatherScoresd`, with the map back on the grid of its file (see
    `monai.transforms.Invertd`), and the preprocessed image. "pred" is a volume (1, X, Y, Z), with one slice for a 2D
    image. Its content depends on `output`:

    - "mask": 1 where the map exceeds the threshold, 0 elsewhere, uint8.
    - "map": the map itself, float32, in standard deviations of held-out normals.
    - "scaled_map": uint8, for viewers that support nothing else. 0 is a typical normal, 128 the model's threshold, and
      255 twice as much or more. The scale is the same for all images, so that two maps can be compared.

    "result" is a JSON-serialisable dictionary:

    - `anomaly_score`, `case_threshold`, `prediction`: the case's score, and 1 if it exceeds the model's threshold.
    - `map_score`, `global_term`: the parts of the score, see `Score.joined`; the second is None if unknown.
    - `p_value`, `n_held_out`: see `HeldOutScores`; the first is None if the model has no held-out cases.
    - `map_threshold`: the threshold that "pred" was made with; `slice_threshold`: that of the model.
    - `profile`: for each plane the `scores` of its slices, None where a slice was skipped, and their `ease`, see
      `Score.ease`, and `global_terms`, if known; for a volume also the `axis`, and for each slice `slices_from_0` and
      `positions_mm`.
    - `most_anomalous_slice`: its `plane`, `axis`, `slice_from_0`, `position_mm` and `center_ras_mm` (three numbers),
      see `SlicePlace`, its `anomaly_score` and its `ease`; None for a 2D image.
    - `anomalous_voxels`, `anomalous_ml`: the volume above the threshold.
    - `scale`: for a scaled map, the `low` and `high` values of 0 and 255.
    - `unit` and `notice`, as text.

    Args:
        image_key: key of the preprocessed image (C, X, Y, Z), a `MetaTensor` in orientation PLS.
        map_key: key of the anomaly map (1, X, Y[, Z]) on the grid of the file, a `MetaTensor`.
        output: "mask", "map" or "scaled_map".
        threshold: map threshold in standard deviations, or "calibrated" for the model's own.

    Raises:
        ValueError: an unknown output, or an invalid threshold.
    """

    def __init__(
        self,
        image_key: str = "image",
        map_key: str = "anomaly_map",
        output: str = "mask",
        threshold: float | str = CALIBRATED,
    ) -> None:
        super().__init__(map_key)
        if output not in OUTPUTS:
            raise ValueError(f"Unknown output {output!r}: choose one of {list(OUTPUTS)}.")
        self.image_key = image_key
        self.output = output
        self.threshold = parse_threshold(threshold)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the map of one case."""
        d = dict(data)
        anomaly_map, image = d[self.keys[0]], d[self.image_key]
        own_threshold = float(d["map_threshold"])
        threshold = own_threshold if self.threshold is None else self.threshold
        values = torch.as_tensor(anomaly_map).as_subclass(Tensor).cpu()
        affine = to_affine_nd(3, ras_affine(anomaly_map.affine, anomaly_map.meta))
        above = values > threshold
        n_above = int(above.sum())
        voxel_ml = math.prod(float(size) for size in affine_to_spacing(affine)) / 1000
        result = {
            **{name: d[name] for name in ("anomaly_score", "map_score", "case_threshold", "prediction")},
            "slice_threshold": d["slice_threshold"],
            "global_term": None if math.isnan(d["global_term"]) else d["global_term"],
            "p_value": None if math.isnan(d["p_value"]) else d["p_value"],
            "n_held_out": d["n_held_out"],
            "map_threshold": threshold,
            "profile": {
                plane: _profile(
                    slice_places(image, plane), scores, {name: d.get(name, {}).get(plane) for name in _BESIDE}
                )
                for plane, scores in d["slice_scores"].items()
            },
            "most_anomalous_slice": _most_anomalous(image, d["slice_scores"], d["ease"]),
            "anomalous_voxels": n_above,
            "anomalous_ml": n_above * voxel_ml,
            "unit": "standard deviations of held-out normals",
            "notice": DISCLAIMER,
        }
        if self.output == "mask":
            shown = above.to(torch.uint8)
        elif self.output == "map":
            shown = values.float()
        else:
            width = abs(own_threshold) or 1.0
            low, high = own_threshold - width, own_threshold + width
            shown = ((values.float() - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
            result["scale"] = {"low": low, "high": high}
        if shown.ndim == 3:
            shown = shown[..., None]  # a single slice, which keeps its affine in any format
        d["pred"] = MetaTensor(shown, affine=torch.as_tensor(affine), meta={MetaKeys.SPACE: SpaceKeys.RAS})
        d["result"] = result
        # MONAI Label resizes and places "pred" by the shape of the file in the image's metadata
        image.meta[MetaKeys.SPATIAL_SHAPE] = np.array(shown.shape[1:])
        image.meta[MetaKeys.ORIGINAL_AFFINE] = affine
        return d


def parse_threshold(value: float | str | None) -> float | None:
    """Parse a threshold from a person or a viewer's options panel.

    Args:
        value: a number of standard deviations, also as text; "calibrated", None or an empty text for the model's own.

    Returns:
        The number, or None for the model's own.

    Raises:
        ValueError: it is neither.

    Example:
        >>> parse_threshold("4.5"), parse_threshold("calibrated")
        (4.5, None)
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", CALIBRATED)):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"Expected a threshold of {CALIBRATED!r}, which is the model's own, or a number of standard deviations "
            f"such as 4.5; got {value!r}."
        )
    return number


def _profile(places: Sequence[SlicePlace], scores: Tensor, beside: Mapping[str, Tensor | None]) -> dict[str, Any]:
    """Return the profile of the slices along a plane."""
    profile: dict[str, Any] = {"scores": _numbers_of(scores)}
    if places:
        profile["axis"] = places[0].axis
        profile["slices_from_0"] = [place.slice_from_0 for place in places]
        profile["positions_mm"] = [place.position_mm for place in places]
    return profile | {name: _numbers_of(numbers) for name, numbers in beside.items() if numbers is not None}


def _most_anomalous(
    image: MetaTensor, slice_scores: Mapping[str, Tensor], ease: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """Return the most anomalous slice and its place in the file."""
    place, found = most_anomalous_place(image, slice_scores), most_anomalous_slice(slice_scores)
    if place is None or found is None:
        return None
    plane, number = found
    return {
        **place_row(place),
        "center_ras_mm": list(place.center_ras_mm or ()),
        "anomaly_score": float(slice_scores[plane][number]),
        **({"ease": float(ease[plane][number])} if plane in ease else {}),
    }


def _numbers_of(slices: Tensor) -> list[float | None]:
    """Return numbers per slice for JSON, with None where a slice was skipped."""
    return [None if math.isnan(number) else number for number in slices.tolist()]

"""The score of a case: the inferer's results for its slices, collected for tables, pictures and viewers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import MapTransform
from torch import Tensor

from aeflow_monai.errors import file_of
from aeflow_monai.output.deferred import DeferredMap, ExceedingMap, exceeding

__all__ = ["GatherScoresd", "MaskMapd", "is_diffuse", "most_anomalous_slice", "scores_by_plane"]

NUMBERS = ("anomaly_score", "map_score", "global_term", "case_threshold", "slice_threshold", "map_threshold", "p_value")


class GatherScoresd(MapTransform):  # type: ignore[misc]
    """Collect the results of `SlicedInferer` for a case, apart from its maps.

    Slice scores, "slice_scores_<plane>" (D,) with NaN where a slice was skipped, become "slice_scores", a dictionary
    from plane to (D,); likewise "ease_<plane>" becomes "ease", and "global_terms_<plane>" becomes "global_terms".
    "anomaly_score" with its parts, the thresholds, "p_value" and "n_held_out" become numbers; "prediction" is added,
    which is 1 if the score exceeds the case threshold.

    Args:
        image_key: key of the preprocessed image, whose file an error names.
    """

    def __init__(self, image_key: str = "image") -> None:
        super().__init__(image_key)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Collect the scores of one case.

        Raises:
            ValueError: the score is not finite.
        """
        d = dict(data)
        for name in ("slice_scores", "ease", "global_terms"):
            by_plane = scores_by_plane(d, name)
            for plane in by_plane:
                del d[f"{name}_{plane}"]
            d[name] = by_plane
        for name in NUMBERS:
            d[name] = float(d[name])
        d["n_held_out"] = int(d["n_held_out"])
        if not math.isfinite(d["anomaly_score"]):
            raise ValueError(
                f"The score of case {d.get('case')} in {file_of(d[self.image_key], 'the image')} is "
                f"{d['anomaly_score']}: the image holds NaN or infinite values; replace them first."
            )
        d["prediction"] = int(d["anomaly_score"] > d["case_threshold"])
        return d


class MaskMapd(MapTransform):  # type: ignore[misc]
    """Add "anomaly_mask", uint8, which is 1 where the anomaly map exceeds the map threshold, 0 elsewhere.

    Args:
        map_key: key of the anomaly map, of any size; the threshold is "map_threshold", see `GatherScoresd`. The mask of
            a deferred map is deferred.
        allow_missing_keys: add nothing if there is no map.
    """

    def __init__(self, map_key: str = "anomaly_map", allow_missing_keys: bool = False) -> None:
        super().__init__(map_key, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the mask of one case."""
        d = dict(data)
        for key in self.key_iterator(d):
            value, threshold = d[key], d["map_threshold"]
            mask_of = ExceedingMap if isinstance(value, DeferredMap) else exceeding
            d["anomaly_mask"] = mask_of(value, threshold)
        return d


def is_diffuse(anomaly_score: float, map_score: float, threshold: float) -> bool:
    """Return whether a case is abnormal as a whole: its score is above the threshold, but that of its maps is not.

    Args:
        anomaly_score: score of the case.
        map_score: the maps' part of it, see `Score.verdict`.
        threshold: case threshold.

    Example:
        >>> is_diffuse(2.5, 0.3, threshold=2.0)
        True
    """
    return anomaly_score > threshold >= map_score


def most_anomalous_slice(slice_scores: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Find the slice with the highest score, in the first plane with a scored slice.

    Args:
        slice_scores: from each plane to the scores of its slices (D,), NaN where a slice was skipped.

    Returns:
        Its plane and its index, counted from 0; None if all slices were skipped.

    Example:
        >>> most_anomalous_slice({"axial": torch.tensor([math.nan, 1.0, 3.0]), "coronal": torch.tensor([9.0])})
        ('axial', 2)
    """
    for plane, scores in slice_scores.items():
        known = torch.as_tensor(scores).nan_to_num(-math.inf)
        if (known > -math.inf).any():
            return plane, int(known.argmax())
    return None


def scores_by_plane(output: Mapping[Any, Any], name: str = "slice_scores") -> dict[str, Tensor]:
    """Collect slice scores from an inferer's output for a volume, for `Score.case_score`.

    Args:
        output: output with the scores of each plane under "slice_scores_<plane>", any shape.
        name: name of other numbers per slice, in place of "slice_scores".

    Returns:
        From each plane ("axial", ...) to its scores, on the CPU.
    """
    prefix = f"{name}_"
    found = {str(key): value for key, value in output.items() if str(key).startswith(prefix)}
    return {key.removeprefix(prefix): torch.as_tensor(scores).cpu() for key, scores in found.items()}

"""The foreground of an image: all but one value, and the ripples that an interpolation leaves around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from aeflow_monai.data.percentiles import percentiles

__all__ = ["foreground_mask"]

# From this fraction of its voxels on, a single value at the corners or the low end of an image is its background.
_BACKGROUND_SHARE = 0.05
# So much of the rest has to be brighter than the background.
_BRIGHTER_SHARE = 0.05
# An interpolation by splines leaves ripples in the background, most of them smaller than this part of the range. Where
# no single value is the background, so much of the image has to be so near to one that it is.
_RIPPLE, _RIPPLED_SHARE = 1e-3, 0.2
# Where the background is the low or high end of an image, only the highest ripples lie beyond it by this part of the
# range: so many voxels at most, as a fraction of those on the other side.
_HIGH_RIPPLE, _MOST_BEYOND_END = 0.1, 0.2
_RANGE = (0.5, 99.5)  # of an image, in percentiles


def foreground_mask(values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
    """Mark what is not background in an image.

    The background is one value: 0, the lowest, or that of corners, if it fills 5 % of the image. An
    interpolation by splines leaves ripples around it, so that what differs from it by less than a thousandth of the
    image's range is background too, unless it may be tissue.

    Args:
        values: finite, of a channel of any shape.

    Returns:
        Which values are foreground, of the same shape; None if nothing is background.

    Example:
        >>> foreground_mask(np.array([0, 0, 0, 7, 9], np.float32)).tolist()
        [False, False, False, True, True]
    """
    background = _background(values)
    if background is None:
        return _beyond_any_ripples(values) if _has_fractions(values) else None
    others: npt.NDArray[np.bool_] = values != background
    if not others.any():
        return others
    low, high = percentiles(values, others, _RANGE)
    inside = _beyond(values, background, low, high)
    is_rippled = np.count_nonzero(inside) < (1 - _RIPPLED_SHARE) * np.count_nonzero(others)
    # between values of tissue, as in z-scored images, the few values near the background are tissue
    return inside if is_rippled or _is_end(values, background, low, high) else others


def _beyond_any_ripples(values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
    """Mark the foreground of an image whose background has no single value; None if there is none."""
    low, high = percentiles(values, None, _RANGE)
    for value in (np.float32(0), np.median(_corners(values))):
        inside = _beyond(values, value, low, high)
        n_inside = int(np.count_nonzero(inside))
        if n_inside > (1 - _RIPPLED_SHARE) * values.size or _corners(inside).any():
            continue
        if value == 0 or np.count_nonzero(values[inside] > value) >= _BRIGHTER_SHARE * n_inside:
            return inside
    return None


def _beyond(values: npt.NDArray[np.float32], background: np.float32, low: float, high: float) -> npt.NDArray[np.bool_]:
    """Mark what differs from a background by more than ripples in an image that reaches from low to high."""
    above, below = _limits(background, low, high, _RIPPLE)
    inside: npt.NDArray[np.bool_] = values > above
    inside |= values < below
    return inside


def _is_end(values: npt.NDArray[np.float32], background: np.float32, low: float, high: float) -> bool:
    above, below = _limits(background, low, high, _HIGH_RIPPLE)
    few, many = sorted((int(np.count_nonzero(values > above)), int(np.count_nonzero(values < below))))
    return few <= _MOST_BEYOND_END * many


def _limits(background: np.float32, low: float, high: float, part: float) -> tuple[np.float32, np.float32]:
    value = float(background)
    distance = part * max(high - value, value - low)
    return np.float32(value + distance), np.float32(value - distance)


def _has_fractions(values: npt.NDArray[np.float32]) -> bool:
    return any((part != np.rint(part)).any() for part in values)  # part by part, since volumes are large


def _corners(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[np.ix_(*([0, -1] for _ in values.shape))].ravel()


def _background(values: npt.NDArray[np.float32]) -> np.float32 | None:
    """The value of the background, or None if there is no single one."""
    corners = _corners(values)
    candidates = {np.float32(0), values.min(), *corners}
    counts = {value: int(np.count_nonzero(values == value)) for value in candidates}
    for value in sorted(counts, key=lambda value: (-counts[value], value)):
        if counts[value] < _BACKGROUND_SHARE * values.size:
            return None
        # a saturated region, at the corners too, has next to nothing above it; but 0 all around is padding
        brighter = int(np.count_nonzero(values > value))
        if brighter >= _BRIGHTER_SHARE * (values.size - counts[value]) or (value == 0 and not corners.any()):
            return np.float32(value)
    return None

"""Percentiles of large images, without the sorted copy that NumPy makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["percentiles"]

Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint32]

_CHUNK = 2**20  # values processed at once
_HALF = np.uint32(16)  # bits of a value that one histogram resolves


def percentiles(values: Floats, inside: npt.NDArray[np.bool_] | None, q: Sequence[float]) -> list[float]:
    """Return exactly the numbers of `np.percentile`, from two histograms of the values' bits.

    Args:
        values: finite values of any shape and memory order.
        inside: mask of the values to use, of the same shape; all if None.
        q: percentiles, in [0, 100].

    Returns:
        A number for each percentile.

    Raises:
        ValueError: the mask selects no value.

    Example:
        >>> percentiles(np.array([[9, 1, 5, 3]], np.float32), None, [50, 100])
        [4.0, 9.0]
    """
    size = values.size if inside is None else int(np.count_nonzero(inside))
    if not size:
        raise ValueError("Percentiles need one value or more.")
    at = np.asarray(q, np.float64) / 100 * (size - 1)
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, size - 1)
    known = _sorted_values(values, inside, np.union1d(below, above))
    found = []
    for rank, next_rank, share in zip(below, above, at - below, strict=True):
        low, high = known[int(rank)], known[int(next_rank)]
        step = high - low  # in single precision, and from the nearer end, as in NumPy
        found.append(float(low + step * share if share < 0.5 else high - step * (1 - share)))
    return found


def _sorted_values(
    values: Floats, inside: npt.NDArray[np.bool_] | None, ranks: npt.NDArray[np.int64]
) -> dict[int, np.float32]:
    """Return the values with these ranks, counted from 0, in sorted order."""
    high = np.zeros(2**16, np.int64)
    for keys in _keys(values, inside):
        high += np.bincount(keys >> _HALF, minlength=len(high))
    ends = np.cumsum(high)
    bins = np.searchsorted(ends, ranks, side="right")
    low = {int(some): np.zeros(2**16, np.int64) for some in bins}
    for keys in _keys(values, inside):
        for some, counts in low.items():
            counts += np.bincount(keys[keys >> _HALF == some] & np.uint32(0xFFFF), minlength=len(counts))
    found = {}
    for rank, some in zip(ranks.tolist(), bins.tolist(), strict=True):
        within = int(np.searchsorted(np.cumsum(low[some]), rank - (ends[some] - high[some]), side="right"))
        found[rank] = _value(some << 16 | within)
    return found


def _keys(values: Floats, inside: npt.NDArray[np.bool_] | None) -> Iterator[Keys]:
    """Yield whole numbers that sort like the values, in chunks in memory order."""
    order: Any = np.argsort(values.strides)[::-1]
    values = values.transpose(order)
    inside = None if inside is None else inside.transpose(order)
    n_rows = max(1, _CHUNK // max(1, values[:1].size))
    for start in range(0, len(values), n_rows):
        rows = slice(start, start + n_rows)
        chunk = values[rows].ravel() if inside is None else values[rows][inside[rows]]
        keys: Keys = (chunk + np.float32(0)).view(np.uint32)  # the sum turns -0 into 0
        # floats are sign and magnitude: flip all bits of negative numbers, and only the sign of others
        keys ^= (keys.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)
        yield keys


def _value(key: int) -> np.float32:
    bits = key ^ (1 << 31) if key >> 31 else ~key & 0xFFFFFFFF
    return np.array([bits], np.uint32).view(np.float32)[0]  # type: ignore[no-any-return]

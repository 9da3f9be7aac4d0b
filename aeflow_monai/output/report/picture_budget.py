"""Selection of the pictures of a page: those of the most interesting cases, up to a size limit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from aeflow_monai.output.report.picture_block import PictureBlock

__all__ = ["LIMIT", "PictureBudget"]

LIMIT = 11_500_000  # characters of all pictures, which leaves room for tables below 15 MB
_VOLUMES = 12  # cases whose blocks of slices are kept before the single pictures of others
_FREED = 0.95  # fraction of the limit to shrink to, so that cases are not sorted for every further one


class _Seen(NamedTuple):
    case: str
    score: float
    threshold: float
    label: int | None


class PictureBudget:
    """Pictures of cases, of which the least interesting are dropped when the limit is exceeded.

    The most interesting cases are missed cases, false alarms, borderline cases and the most anomalous ones: a case
    ranks by its best place in these four lists. Each case has a picture of one slice; volumes also have several slices,
    which are dropped first.

    Args:
        limit: limit of all pictures, in characters.

    Example:
        >>> import numpy as np
        >>> layers = {"image": np.zeros((1, 8, 8), dtype=np.uint8)}
        >>> block = PictureBlock("axial", (1,), (), 0, (8.0, 8.0, 1.0), (0, 255), 6.0, layers, {})
        >>> budget = PictureBudget(limit=1700)
        >>> for case, score in (("a", -5.0), ("b", 9.0), ("c", 2.5)):
        ...     budget.add(case, score, 2.0, block)
        >>> list(budget.pictures())
        ['b', 'c']
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._seen: list[_Seen] = []
        self._singles: dict[str, str] = {}
        self._blocks: dict[str, str] = {}
        self._size = 0

    def add(self, case: str, score: float, threshold: float, block: PictureBlock, label: int | None = None) -> None:
        """Add the pictures of a case.

        Args:
            case: name of the case.
            score: anomaly score of the case.
            threshold: case threshold.
            block: slices of the case.
            label: 0 for normal, 1 for abnormal, None if unknown.
        """
        self._seen.append(_Seen(case, score, threshold, label))
        self._keep(self._singles, case, block.single().encoded())
        if len(block.numbers) > 1:
            self._keep(self._blocks, case, block.encoded())
        if self._size > self.limit:
            self._drop()

    def pictures(self) -> dict[str, dict[str, Any]]:
        """Return, for each case, its "single" and optionally its "block", see `PictureBlock.encoded`."""
        kept: dict[str, dict[str, Any]] = {case: {"single": json.loads(text)} for case, text in self._singles.items()}
        for case, text in self._blocks.items():
            kept[case]["block"] = json.loads(text)
        return kept

    def _keep(self, pool: dict[str, str], case: str, encoded: dict[str, Any]) -> None:
        pool[case] = json.dumps(encoded, separators=(",", ":"))
        self._size += len(pool[case])

    def _drop(self) -> None:
        order = _by_interest(self._seen)
        blocks = [case for case in order if case in self._blocks]
        singles = [case for case in order if case in self._singles]
        going = [(self._blocks, case) for case in reversed(blocks[_VOLUMES:])]
        going += [(self._singles, case) for case in reversed(singles) if case not in blocks[:_VOLUMES]]
        going += [(self._blocks, case) for case in reversed(blocks[:_VOLUMES])]
        going += [(self._singles, case) for case in reversed(blocks[:_VOLUMES])]
        for pool, case in going:
            if self._size <= _FREED * self.limit:
                break
            self._size -= len(pool.pop(case))
        for case in [case for case in self._blocks if case not in self._singles]:
            self._size -= len(self._blocks.pop(case))


def _by_interest(seen: Sequence[_Seen]) -> list[str]:
    """Return the cases, the most interesting first."""
    missed = [one for one in seen if one.label == 1 and one.score <= one.threshold]
    false = [one for one in seen if one.label == 0 and one.score > one.threshold]
    places: dict[str, int] = {}
    lists: Iterable[list[_Seen]] = (
        sorted(missed, key=lambda one: one.score),
        sorted(false, key=lambda one: -one.score),
        sorted(seen, key=lambda one: abs(one.score - one.threshold)),
        sorted(seen, key=lambda one: -one.score),
    )
    for cases in lists:
        for place, one in enumerate(cases):
            places[one.case] = min(place, places.get(one.case, place))
    return sorted(places, key=lambda case: places[case])

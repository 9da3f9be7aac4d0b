"""Parallel transforms: pictures are drawn while files are compressed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.transforms import Compose, Transform

__all__ = ["Alongside"]


class Alongside(Transform):  # type: ignore[misc]
    """Apply transforms, and in another thread further ones to the same data, such as those that draw.

    Python runs one thread at a time, but compression, sorting and the drawing of pixels release its lock.

    Args:
        transforms: Applied one after the other; their output is the result.
        aside: Applied one after the other in the other thread. Their output is dropped, and they must not change
            anything in place.

    Example:
        >>> names = []
        >>> both = Alongside([lambda d: {**d, "case": "b"}], aside=[lambda d: names.append(d["case"])])
        >>> both({"case": "a"}), names
        ({'case': 'b'}, ['a'])
    """

    def __init__(self, transforms: Sequence[Callable[..., Any]], aside: Sequence[Callable[..., Any]] = ()) -> None:
        self.transforms = Compose(transforms)
        self.aside = Compose(aside)

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        """Transform one case.

        Args:
            data: A dictionary; both sides get a copy of it, with the same values.

        Returns:
            The output of `transforms`, once both threads are done.

        Raises:
            Exception: The error of a transform, once the other thread is done. If both fail, that of `transforms`.
        """
        if not self.aside.transforms:  # starting a thread takes longer than writing a small image
            return self.transforms(dict(data))
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(self.aside, dict(data))
            result = self.transforms(dict(data))
        beside.result()
        return result

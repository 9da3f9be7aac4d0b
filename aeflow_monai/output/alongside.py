"""Two things at the same time: while files are compressed, a core is left for pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.transforms import Compose, Transform

__all__ = ["Alongside"]


class Alongside(Transform):  # type: ignore[misc]
    """Apply transforms, and meanwhile others to the same data in a thread of their own, such as those that draw.

    Python runs one thread at a time, but compression, sorting and the drawing of pixels let others run.

    Args:
        transforms: Applied one after the other; what they give is the result.
        aside: Applied in turn in the other thread. What they give is dropped, and they must change nothing in
            place.

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
            What `transforms` give, once both sides are done.

        Raises:
            Exception: What a transform raises, once the other side is done. If both sides raise, that of
                `transforms`.
        """
        if not self.aside.transforms:  # a thread takes longer to start than a small image to write
            return self.transforms(dict(data))
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(self.aside, dict(data))
            result = self.transforms(dict(data))
        beside.result()
        return result

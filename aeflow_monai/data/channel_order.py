"""The order of the files that become the channels of an image, as far as their names tell it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from aeflow_monai.data.datalist.image_files import without_extension

__all__ = ["OneOrder", "channel_names", "common_channel_names", "require_channel_names", "require_order"]

_MOST_ORDERS = 1000  # remembered, since a list may have millions of items


def channel_names(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """Return what tells the files of an image apart, in their names or their folders; nothing if nothing does.

    Args:
        paths: files of the image, in the order of its channels.

    Example:
        >>> channel_names(["sub-01_run-1_T1.nii.gz", "sub-01_run-1_FLAIR.nii.gz"])
        ('t1', 'flair')
    """
    files = [Path(path) for path in paths]
    if len(files) < 2:
        return ()
    return _told_apart([without_extension(file.name) for file in files]) or _told_apart([f.parent.name for f in files])


def _told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Return the parts of names that the others lack; nothing if that does not tell them apart."""
    parts = [re.split(r"[_.-]", name.lower()) for name in names]
    common = set(parts[0]).intersection(*parts[1:])
    own = tuple("_".join(part for part in of_name if part not in common) for of_name in parts)
    return own if len(set(own)) == len(own) else ()


def common_channel_names(images: Iterable[Sequence[str | Path]]) -> tuple[str, ...]:
    """Return the channel names that all images have; nothing if they differ.

    Args:
        images: files of each image.

    Example:
        >>> common_channel_names([["a_T1.nii", "a_T2.nii"], ["b_T1.nii", "b_T2.nii"]])
        ('t1', 't2')
        >>> common_channel_names([["a1.nii", "a2.nii"], ["a3.nii", "a4.nii"]])
        ()
    """
    found = {channel_names(paths) for paths in images}
    return found.pop() if len(found) == 1 else ()


def require_order(paths: Sequence[str | Path], trained: Sequence[str]) -> None:
    """Raise an error for files with the channel names of the training in another order: channels would be swapped.

    Args:
        paths: files of an image, in the order of its channels.
        trained: channel names of the training. Files with other names are accepted in any order.

    Raises:
        ValueError: the order differs.

    Example:
        >>> require_order(["a_T1.nii", "a_T2.nii"], ["t1", "t2"])
        >>> require_order(["a_T2.nii", "a_T1.nii"], ["t1", "t2"])
        Traceback (most recent call last):
        ...
        ValueError: Expected the files of an image in the order of the training, t1, t2; got a_T2.nii, ...
    """
    own, wanted = channel_names(paths), tuple(name.lower() for name in trained)
    if own != wanted and sorted(own) == sorted(wanted):
        raise ValueError(
            f"Expected the files of an image in the order of the training, {', '.join(trained)}; got "
            f"{', '.join(Path(path).name for path in paths)}, whose channels would be swapped. Name them in that order."
        )


def require_channel_names(items: Iterable[Mapping[str, Any]], names: str | Sequence[str]) -> None:
    """Raise an error for names of channels that no image has, so that no order would be refused.

    Args:
        items: images to train on.
        names: the option `channel_names`; nothing if the images tell them.

    Raises:
        ValueError: no image has these names.

    Example:
        >>> require_channel_names([{"image": ["a_T1.nii", "a_T2.nii"]}], ["T2", "T1"])
        >>> require_channel_names([{"image": ["a_T1.nii", "a_T2.nii"]}], ["T1", "FLAIR"])
        Traceback (most recent call last):
        ...
        ValueError: channel_names: expected what tells the files of an image apart, such as [t1, t2]; got [T1, FLAIR].
    """
    given = sorted(name.lower() for name in ensure_tuple(names))
    found = {names_of for item in items if (names_of := channel_names(ensure_tuple(item["image"])))} if given else set()
    if given and not any(sorted(own) == given for own in found):
        known = f", such as [{', '.join(min(found))}]" if found else ", which no image here has"
        raise ValueError(
            f"channel_names: expected what tells the files of an image apart{known}; got "
            f"[{', '.join(ensure_tuple(names))}]."
        )


class OneOrder:
    """Refuses a list whose images have the same channel names in different orders: channels would be swapped.

    Example:
        >>> order = OneOrder()
        >>> for case in "ab":
        ...     order.require([Path(f"{case}_T1.nii"), Path(f"{case}_T2.nii")])
    """

    def __init__(self) -> None:
        self._first: dict[frozenset[str], tuple[tuple[str, ...], Sequence[Path]]] = {}

    def require(self, paths: Sequence[Path]) -> None:
        """Compare an image with those before.

        Args:
            paths: files of the image, in the order of its channels.

        Raises:
            ValueError: an image before has the same channel names in another order.
        """
        # by names alone: a missing file, or one with an impossible name, fails its case later
        own = channel_names(paths)
        if not own or (len(self._first) == _MOST_ORDERS and frozenset(own) not in self._first):
            return
        ordered, example = self._first.setdefault(frozenset(own), (own, paths))
        if own != ordered:
            raise ValueError(
                f"Expected the files of each item in one order, since they become channels; got "
                f"{_names_of(example)} in one item, and {_names_of(paths)} in another. Name the files of all items in "
                "one order."
            )


def _names_of(paths: Sequence[Path]) -> str:
    return ", ".join("/".join(path.parts[-2:]) for path in paths)

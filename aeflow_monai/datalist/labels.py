"""Labels: 0 normal, 1 abnormal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.transforms import LoadImage

__all__ = ["require_labels"]


def require_labels(items: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Passes on a datalist that can be evaluated, before anything is computed.

    Args:
        items: a datalist. Items with a "problem" are passed on unseen.

    Returns:
        The same.

    Raises:
        ValueError: an item has no label, or all have the same.
    """
    usable = [item for item in items if "problem" not in item]
    unlabelled = [item["image"] for item in usable if "label" not in item]
    classes = {item["label"] for item in usable if "label" in item}
    if unlabelled or classes != {0, 1}:
        found = f"{len(unlabelled)} of {len(usable)} test images have no label" if unlabelled else f"labels {classes}"
        raise ValueError(
            f"Evaluation needs test images labelled normal (0) and abnormal (1), both; got {found}. Label them, or use "
            "inference.yaml, which needs no labels."
        )
    return items


def parse_label(value: Any, where: str) -> int:
    """0 or 1, from a number or its text."""
    if str(value) not in ("0", "1"):
        raise ValueError(f"{where} has to be 0 (normal) or 1 (abnormal), got {value!r}.")
    return int(value)


def label_of_mask(mask: Path) -> int:
    """1 if the mask holds anything but 0."""
    return int(bool(LoadImage(image_only=True)(mask).any()))

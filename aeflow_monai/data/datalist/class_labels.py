"""Labels of images: 0 is normal, 1 is abnormal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aeflow_monai.data.readers import LoadCased

__all__ = ["require_labels"]


def require_labels(items: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Refuse a datalist that cannot be evaluated, before anything is computed.

    An evaluation needs normal and abnormal images, or abnormal images with lesion masks, whose slices and voxels are of
    both kinds.

    Args:
        items: a datalist. Items with a "problem" are not checked.

    Returns:
        The same datalist.

    Raises:
        ValueError: an item has no label, all are normal, or all are abnormal and none has a mask.
    """
    usable = [item for item in items if "problem" not in item]
    unlabelled = [item["image"] for item in usable if "label" not in item]
    classes = {item["label"] for item in usable if "label" in item}
    masked = classes == {1} and any("lesion" in item for item in usable)
    if unlabelled or not (masked or classes == {0, 1}):
        found = f"{len(unlabelled)} of {len(usable)} test images have no label"
        if not unlabelled:
            found = f"labels {classes} and no masks" if classes == {1} else f"labels {classes}"
        raise ValueError(
            "Evaluation needs test images labelled normal (0) and abnormal (1), both, or abnormal ones with lesion "
            f"masks; got {found}. Label them or add masks, or use inference.yaml, which needs no labels."
        )
    return items


def parse_label(value: Any, where: str) -> int:
    """Return 0 or 1 from a number or its text."""
    if str(value) not in ("0", "1"):
        raise ValueError(f"{where} has to be 0 (normal) or 1 (abnormal), got {value!r}.")
    return int(value)


def label_of_mask(mask: Path) -> int:
    """Return 1 if a mask marks any lesion, otherwise 0.

    Raises:
        ValueError: the mask cannot be read.
    """
    try:
        return int(bool(LoadCased("lesion")({"lesion": str(mask)})["lesion"].any()))
    except (OSError, ValueError) as error:
        raise ValueError(f"The mask {mask} tells the label of its image, but cannot be read: {error}") from error

"""Whether a checkpoint is of this network and this score; if not, what differs and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["require_same_network", "require_same_score", "require_same_version"]


def require_same_version(checkpoint: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint of something else, or of before a part of the network existed.

    Args:
        checkpoint: the state dict to load.
        network: the state dict of what it is loaded into.

    Raises:
        ValueError: the checkpoint has nothing of a part, or of any.
    """
    known = {_part(key) for key in checkpoint}
    new = [part for part in map(_part, network) if part not in known]
    if not known.intersection(map(_part, network)):
        raise ValueError(
            f"This is no checkpoint of AE-Flow: it holds {', '.join(sorted(known)[:3]) or 'nothing'}. Give the "
            "model.pt that a training ends with."
        )
    if new:
        raise ValueError(f"The checkpoint was trained by an earlier version, which had no {new[0]} yet: train again.")


def require_same_network(checkpoint: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint of another architecture.

    Args:
        checkpoint: the state dict to load.
        network: the state dict of what it is loaded into.

    Raises:
        ValueError: tensors are missing, left over, or of another shape.
    """
    differences = {
        "tensors missing from the checkpoint": [key for key in network if key not in checkpoint],
        "tensors unknown to the network": [key for key in checkpoint if key not in network],
        "tensors of another shape": [
            f"{key}: {tuple(checkpoint[key].shape)} in the checkpoint, {tuple(own.shape)} in the network"
            for key, own in network.items()
            if key in checkpoint and checkpoint[key].shape != own.shape
        ],
    }
    details = [f"{len(found)} {what}, first {found[0]}" for what, found in differences.items() if found]
    if details:
        raise ValueError(
            f"The checkpoint is of another architecture than this network ({'; '.join(details)}). Give the same "
            "config files and network options (backbone, stages, n_steps, subnet, channels) as in training, or "
            "choose the checkpoint that belongs to this network."
        )


def require_same_score(checkpoint: Mapping[str, Any], network: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose thresholds belong to another score.

    Args:
        checkpoint: names and values of the options that the score was calibrated with.
        network: those of what it is loaded into.

    Raises:
        ValueError: an option differs.
    """
    details = [
        f"{name} {checkpoint[name]} in the checkpoint, {own} here"
        for name, own in network.items()
        if checkpoint[name] != own
    ]
    if details:
        raise ValueError(
            f"The checkpoint's thresholds belong to another score ({'; '.join(details)}). Give the same overlay file "
            "or options as in training."
        )


def _part(key: str) -> str:
    return key.partition(".")[0]

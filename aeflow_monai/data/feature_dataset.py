"""Slices with the features that a frozen encoder gives them, which are the same in every epoch: computed once, kept."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader
from torch import Tensor, nn
from torch.utils.data import Dataset

from aeflow_monai.progress import tracked

__all__ = ["FeatureDataset", "prepare_slice_batch"]

_logger = logging.getLogger(__name__)


class FeatureDataset(Dataset[dict[str, Any]]):
    """A data set of slices with the features that a frozen encoder gives them.

    Args:
        slices: items hold "image" (C, H, W).
        encoder: frozen; gives a list of (N, C_i, h_i, w_i) for (N, C, H, W).
        folder: where to keep the features, one memory-mapped file per stage, which goes with this process; in memory
            if None.
        batch_size: images per call of the encoder.
        device: where the encoder computes; where it lies if None.

    Raises:
        ValueError: the encoder is not frozen, so that kept features would grow stale.
        OSError: there is no room for the features.
    """

    def __init__(
        self,
        slices: Dataset[dict[str, Any]],
        encoder: nn.Module,
        folder: str | Path | None = None,
        batch_size: int = 8,
        device: torch.device | str | None = None,
    ) -> None:
        if any(p.requires_grad for p in encoder.parameters()) or encoder.training:
            raise ValueError("Features can be kept only of a frozen encoder: set its option frozen to true.")
        self.slices = slices
        self.stages: list[Any] = []
        device = next(encoder.parameters()).device if device is None else device
        n_slices = len(slices)  # type: ignore[arg-type]
        start = 0
        for batch in tracked(DataLoader(slices, batch_size=batch_size), "features"):
            with torch.no_grad():
                features = encoder(batch["image"].to(device))
            if not self.stages:
                self.stages = [_allocate((n_slices, *stage.shape[1:]), folder) for stage in features]
            for store, stage in zip(self.stages, features, strict=True):
                store[start : start + len(stage)] = stage.cpu().numpy()
            start += len(batch["image"])
        size = sum(store.nbytes for store in self.stages) / 2**20
        _logger.info(f"Encoder features of {n_slices} slices kept in {folder or 'memory'} ({size:.0f} MB)")

    def __len__(self) -> int:
        return len(self.slices)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = [torch.from_numpy(np.array(store[index])) for store in self.stages]
        return {**self.slices[index], "features": features}


def _allocate(shape: tuple[int, ...], folder: str | Path | None) -> Any:
    """An array in memory, or in a file without a name: no other process changes it, and none is left behind."""
    if folder is None:
        return np.empty(shape, dtype=np.float32)
    Path(folder).mkdir(parents=True, exist_ok=True)
    n_bytes = 4 * math.prod(shape)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and the end of the process later
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}: {n_bytes / 2**20:.0f} MB for features, see cache_dir", str(folder)
            ) from error


def prepare_slice_batch(
    batch: Mapping[str, Any],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor], tuple[()], dict[str, Any]]:
    """Prepare a batch of slices for MONAI's engines: the image is input and target, kept features go along.

    The target of labelled slices is a pair, image and "abnormal", as `MixtureLoss` takes it.

    Args:
        batch: "image" (N, C, H, W) and, if kept, "features"; of `LabelledSlices` "abnormal" too, (N, 1, H, W).
        device: where to.
        non_blocking: copy without waiting.
        kwargs: further options of `Tensor.to`.

    Returns:
        Input, target, no positional and possibly one keyword argument of the network.
    """
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    labelled = "abnormal" in batch
    target = (image, batch["abnormal"].to(device, non_blocking=non_blocking)) if labelled else image
    if "features" not in batch:
        return image, target, (), {}
    features = [stage.to(device, non_blocking=non_blocking, **kwargs) for stage in batch["features"]]
    return image, target, (), {"features": features}

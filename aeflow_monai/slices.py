"""Volumes become training slices: each file is read and preprocessed once, then slices come from memory.

A frozen encoder gives the same features for a slice in every epoch, so they can be computed once and kept, in memory
or in files: an epoch then costs the flow and the decoder only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from torch.utils.data import Dataset

__all__ = ["FeatureDataset", "SliceDataset", "prepare_slice_batch"]

_logger = logging.getLogger(__name__)


class SliceDataset(Dataset[dict[str, Any]]):
    """Slices of preprocessed volumes, kept in memory as float32.

    Args:
        data: a datalist; each item goes through `transform` once.
        transform: gives "image" as (C, H, W, D) in [0, 1], all with the same C, H and W. D is the number of slices: 1
            for a 2D image.
        min_foreground: slices with a smaller share of pixels above 0 are left out, in [0, 1].

    Raises:
        ValueError: no slice is left, or volumes come out in different shapes.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        min_foreground: float = 0.0,
    ) -> None:
        self.images: list[Tensor] = []
        self.cases: list[str] = []
        self.files: list[str] = []
        self.positions: list[int] = []
        for item in data:
            # without metadata, which differs between file formats and then cannot be batched
            volume = convert_to_tensor(transform(item)["image"], dtype=torch.float32, track_meta=False)
            if not torch.isfinite(volume).all():
                raise ValueError(f"{item['image']} holds NaN or infinite values after the preprocessing: replace them.")
            if volume.ndim != 4:
                raise ValueError(
                    f"Expected a volume of shape (C, H, W, D) from the preprocessing; got {tuple(volume.shape)} for "
                    f"{item['image']}. A 2D image needs the transform EnsureVolumed."
                )
            if self.images and volume.shape[:3] != self.images[0].shape:
                raise ValueError(
                    f"Slices have to be of one shape (C, H, W) to be batched: {tuple(self.images[0].shape)} so far, "
                    f"but {item['image']} gives {tuple(volume.shape[:3])}. Set image_size to two numbers."
                )
            for position in range(volume.shape[3]):
                image = volume[..., position]
                if (image > 0).float().mean() >= min_foreground:
                    # a copy of its own: a view would keep the whole volume alive for one slice
                    self.images.append(image.contiguous().clone())
                    self.cases.append(str(item["case"]))
                    self.files.append(str(item["image"]))
                    self.positions.append(position)
        if not self.images:
            raise ValueError(
                f"No slice is left of {len(data)} cases: none has {min_foreground:.0%} of its pixels above 0. "
                "Lower min_foreground or look at the intensity normalisation."
            )
        _logger.info(f"{len(self.images)} slices of {len(data)} cases in memory")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index],
            "case": self.cases[index],
            "file": self.files[index],
            "slice": self.positions[index],
        }


class FeatureDataset(Dataset[dict[str, Any]]):
    """A data set of slices with the features that a frozen encoder gives them.

    Args:
        slices: items hold "image" (C, H, W).
        encoder: frozen; gives a list of (N, C_i, h_i, w_i) for (N, C, H, W).
        folder: where to keep the features, one memory-mapped file per stage; in memory if None. Files of an
            earlier run are replaced.
        batch_size: images per call of the encoder.
        device: where the encoder computes; where it lies if None.

    Raises:
        ValueError: the encoder is not frozen, so that kept features would grow stale.
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
            raise ValueError("Features can be kept only of a frozen encoder: set frozen, or keep_features to false.")
        self.slices = slices
        self.stages: list[Any] = []
        device = next(encoder.parameters()).device if device is None else device
        n_slices = len(slices)  # type: ignore[arg-type]
        start = 0
        for batch in DataLoader(slices, batch_size=batch_size):
            with torch.no_grad():
                features = encoder(batch["image"].to(device))
            if not self.stages:
                self.stages = [
                    _allocate((n_slices, *stage.shape[1:]), folder, index) for index, stage in enumerate(features)
                ]
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


def _allocate(shape: tuple[int, ...], folder: str | Path | None, index: int) -> Any:
    if folder is None:
        return np.empty(shape, dtype=np.float32)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(Path(folder) / f"features_{index}.npy", mode="w+", dtype=np.float32, shape=shape)


def prepare_slice_batch(
    batch: Mapping[str, Any],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor, tuple[()], dict[str, Any]]:
    """Prepare a batch of slices for MONAI's engines: the image is input and target, kept features go along.

    Args:
        batch: "image" (N, C, H, W) and, if kept, "features".
        device: where to.
        non_blocking: copy without waiting.
        kwargs: further options of `Tensor.to`.

    Returns:
        Input, target, no positional and possibly one keyword argument of the network.
    """
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    if "features" not in batch:
        return image, image, (), {}
    features = [stage.to(device, non_blocking=non_blocking, **kwargs) for stage in batch["features"]]
    return image, image, (), {"features": features}

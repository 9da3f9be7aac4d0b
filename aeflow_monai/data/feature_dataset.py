"""Slices with their features from a frozen encoder, computed once, since they are the same in every epoch."""

from __future__ import annotations

import logging
import platform
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data import DataLoader
from torch import Tensor, nn
from torch.utils.data import Dataset

from aeflow_monai.data.kept_arrays import kept_array, mapped_array
from aeflow_monai.launch import is_first_of_node
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.network.folded_encoder import fold_encoder
from aeflow_monai.processes import gathered, n_processes, process_number, wait_for_all
from aeflow_monai.progress import tracked

__all__ = ["FeatureDataset", "prepare_slice_batch"]

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_HOLDS = "features"  # purpose of the arrays, in messages
_Part = list[np.ndarray[Any, np.dtype[np.float32]]]  # features of one batch, by stage
# Limits of half precision: an error of a hundredth of a channel's standard deviation, and values up to about a
# hundredth of its largest number.
_ROUNDED, _LARGE = 0.01, 600.0


class FeatureDataset(Dataset[dict[str, Any]]):
    """A data set of slices with their features from a frozen encoder.

    Features are stored in half precision if that changes no channel of the first batch by more than a hundredth of its
    standard deviation. They are returned in single precision.

    In a training with several processes each encodes its share of the batches and receives the features of the others.
    With a folder, the processes of a node share the same files.

    Args:
        slices: items hold "image" (C, H, W).
        encoder: a frozen encoder; maps (N, C, H, W) to a list of (N, C_i, h_i, w_i).
        folder: where to store the features, one memory-mapped file per stage, which is deleted when the processes that
            use it end; in memory if None.
        batch_size: images per call of the encoder.
        device: where the encoder computes; its own device if None.
        all_processes: share the work with all processes of torch.distributed, which have to make the same call.

    Raises:
        ValueError: the encoder is not frozen, so that stored features would become stale.
        OSError: there is not enough space for the features.
    """

    def __init__(
        self,
        slices: Dataset[dict[str, Any]],
        encoder: nn.Module,
        folder: str | Path | None = None,
        batch_size: int = 8,
        device: torch.device | str | None = None,
        all_processes: bool = False,
    ) -> None:
        if any(p.requires_grad for p in encoder.parameters()) or encoder.training:
            raise ValueError("Features can be kept only of a frozen encoder: set its option frozen to true.")
        self.slices = slices
        self.stages: list[Any] = []
        device = next(encoder.parameters()).device if device is None else device
        n_slices = len(slices)  # type: ignore[arg-type]
        # the batches of one process are dealt out in turn, since the batch size affects rounding
        batches = [range(n_slices)[start : start + batch_size] for start in range(0, n_slices, batch_size)]
        processes, own = (n_processes(), process_number()) if all_processes else (1, 0)
        features_of = _Folded(encoder, device)
        with closing(_read_ahead(DataLoader(slices, batch_sampler=batches[own::processes]))) as loader:
            for first in tracked(range(0, len(batches), processes), "features"):
                part: _Part = features_of(next(loader)) if first + own < len(batches) else []
                parts = gathered(part) if all_processes else [part]
                if not self.stages:
                    shapes = [(n_slices, *stage.shape[1:]) for stage in parts[0]]
                    kind = _kind_for(parts[0])
                    if folder is None or processes == 1:
                        self.stages = [kept_array(shape, kind, folder, _HOLDS) for shape in shapes]
                    else:
                        self.stages = _allocated_for_node(shapes, folder, kind)
                if folder is not None and processes > 1 and not is_first_of_node():
                    continue  # the first process of the node writes the files
                for rows, features in zip(batches[first : first + processes], parts, strict=False):
                    for store, stage in zip(self.stages, features, strict=True):
                        store[rows.start : rows.stop] = _within(stage, store.dtype)
        if all_processes:
            wait_for_all()
        size = sum(store.nbytes for store in self.stages) / 2**20
        precision = "half" if any(store.dtype == np.float16 for store in self.stages) else "single"
        place = folder or "memory"
        _logger.info(f"Encoder features of {n_slices} slices kept in {place} ({size:.0f} MB, {precision} precision)")

    def __len__(self) -> int:
        return len(self.slices)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = [torch.from_numpy(np.array(store[index], dtype=np.float32)) for store in self.stages]
        return {**self.slices[index], "features": features}


def _read_ahead(batches: Iterable[_T]) -> Generator[_T]:
    """Yield batches; the next one is read, or its copies are made, while the encoder processes the current one."""
    waiting = iter(batches)
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, waiting, None)
        while (batch := following.result()) is not None:
            following = reader.submit(next, waiting, None)
            yield batch


class _Folded:
    """The encoder's features of batches, by stage; the encoder is folded for the size of the first batch, for speed."""

    def __init__(self, encoder: nn.Module, device: torch.device | str) -> None:
        self.encoder, self.device = encoder, device
        self.folded: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> _Part:
        image = batch["image"].to(self.device)
        if self.folded is None:
            self.folded = self._of_size(image)
        return [stage.cpu().numpy() for stage in self.folded(image)]

    def _of_size(self, image: Tensor) -> nn.Module:
        if not isinstance(self.encoder, Encoder):
            return self.encoder
        folded = fold_encoder(self.encoder, image.shape[-2:])
        return folded.to(memory_format=torch.channels_last) if image.device.type == "cpu" else folded


def _kind_for(first: _Part) -> type[np.floating[Any]]:
    """Choose half precision if it preserves the features of the first batch, the same type in all processes."""
    for stage in first:
        if not np.abs(stage).max() < _LARGE:  # or not finite
            return np.float32
        others = (0, *range(2, stage.ndim))
        error = np.sqrt(np.square(stage.astype(np.float16) - stage).mean(axis=others))
        if (error > _ROUNDED * stage.std(axis=others)).any():
            return np.float32
    return np.float16


def _within(stage: np.ndarray[Any, np.dtype[np.float32]], kind: np.dtype[Any]) -> Any:
    """Clip features to the range of the stored type, so that none becomes infinite."""
    most = np.finfo(kind).max
    if not (np.abs(stage[np.isfinite(stage)]) > most).any():
        return stage
    _logger.warning(f"Features beyond {most:g}, the largest number of their half precision, are kept as that.")
    return np.where(np.isfinite(stage), np.clip(stage, -most, most), stage)


def _allocated_for_node(
    shapes: Sequence[tuple[int, ...]], folder: str | Path, kind: type[np.floating[Any]]
) -> list[Any]:
    """Make arrays as `kept_array`, in files shared by a node's processes and unlinked once all have opened them."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder, f"features_{platform.node()}_{number}.{kind.__name__}") for number in range(len(shapes))]
    stores = []
    if is_first_of_node():
        for path, shape in zip(paths, shapes, strict=True):
            with path.open("w+b") as file:
                stores.append(mapped_array(file, shape, kind, folder, _HOLDS))
    wait_for_all()
    for path, shape in zip(paths, shapes, strict=True) if not stores else ():
        stores.append(np.memmap(path, dtype=kind, mode="r", shape=shape))
    wait_for_all()
    if is_first_of_node():
        for path in paths:
            path.unlink()
    return stores


def prepare_slice_batch(
    batch: Mapping[str, Any],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor], tuple[()], dict[str, Any]]:
    """Prepare a batch of slices for MONAI's engines: the image is input and target, with any stored features.

    The target of labelled slices is the pair of image and "abnormal" that `MixtureLoss` takes. Only some of them are
    reconstructed, see `AEFlow.forward`.

    Args:
        batch: "image" (N, C, H, W) and, if stored, "features"; from `LabelledSlices` also "abnormal" (N, 1, H, W)
            and "is_target" (N,).
        device: target device.
        non_blocking: copy asynchronously.
        kwargs: further options of `Tensor.to`.

    Returns:
        Input, target, no positional arguments, and keyword arguments of the network, if any.
    """
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    options: dict[str, Any] = {}
    if "features" in batch:
        options["features"] = [stage.to(device, non_blocking=non_blocking, **kwargs) for stage in batch["features"]]
    if "abnormal" not in batch:
        return image, image, (), options
    options["is_target"] = batch["is_target"].to(device, non_blocking=non_blocking)
    return image, (image, batch["abnormal"].to(device, non_blocking=non_blocking)), (), options

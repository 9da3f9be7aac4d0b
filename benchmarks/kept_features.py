"""Time of a training epoch with the frozen encoder in the loop, against one with its features kept.

Both epochs see the same images, in one process and one run, with the same trained parts. The encoder's weights are
random: they do not change the time. Usage:

    python benchmarks/kept_features.py [--backbone wide_resnet50_2] [--stages 3] [--images 48] [--paper]
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time

import torch
from aeflow_monai.engine.workflow import keep_freed_memory
from monai.data import DataLoader
from torch.utils.data import Dataset

from aeflow_monai.data.feature_dataset import FeatureDataset
from aeflow_monai.data.slice_dataset import prepare_slice_batch
from aeflow_monai.network.aeflow import AEFlow
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.network.loss import AEFlowLoss


class RandomSlices(Dataset):
    """Images of noise."""

    def __init__(self, count: int, size: int) -> None:
        self.images = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index]}


def epoch_seconds(model: AEFlow, dataset: Dataset, batch_size: int) -> float:
    loss_function = AEFlowLoss()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    model.train()
    start = time.perf_counter()
    for batch in DataLoader(dataset, batch_size=batch_size, shuffle=True):
        image, target, _, features = prepare_slice_batch(batch)
        optimizer.zero_grad()
        loss_function(model(image, **features), target).backward()
        optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--stages", type=int, nargs="+", default=[3])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--paper", action="store_true", help="the published flow and decoder instead of the default")
    options = parser.parse_args()

    keep_freed_memory()
    torch.manual_seed(0)
    encoder = Encoder(options.backbone, options.stages, weights="random")
    published = {"hidden_channels": 512, "decoder_channels": [512, 256, 64], "feature_norm": None}
    model = AEFlow(encoder, **(published if options.paper else {}))
    slices = RandomSlices(options.images, options.size)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    start = time.perf_counter()
    in_memory = FeatureDataset(slices, encoder)
    print(f"computing the features of {options.images} images once: {time.perf_counter() - start:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        on_disk = FeatureDataset(slices, encoder, folder)
        datasets = {"encoder in the loop": slices, "kept in memory": in_memory, "kept on disk": on_disk}
        for dataset in datasets.values():  # first calls allocate
            epoch_seconds(model, dataset, options.batch_size)
        # in turn, so that a machine whose speed drifts is fair to all
        rounds = [
            {name: epoch_seconds(model, dataset, options.batch_size) for name, dataset in datasets.items()}
            for _ in range(options.repeats)
        ]
    for name in datasets:
        seconds = sorted(times[name] for times in rounds)[len(rounds) // 2]
        ratios = sorted(times["encoder in the loop"] / times[name] for times in rounds)
        print(
            f"{name:>20}: {seconds:7.2f} s per epoch, ratio {ratios[len(ratios) // 2]:5.2f} (median of {len(rounds)})"
        )


if __name__ == "__main__":
    main()

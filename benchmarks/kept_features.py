"""Time of a training epoch with the frozen encoder in the loop, against one with stored features.

Both epochs use the same images, in one process and one run, with the same trained parts. The encoder's weights are
random, which does not affect the time. Usage:

    python benchmarks/kept_features.py [--backbone wide_resnet50_2] [--stages 3] [--images 48] [--paper]
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial

import torch
from monai.data import DataLoader
from shared import arguments, in_turn, machine, median_ratio, seconds
from torch.utils.data import Dataset

from aeflow_monai import AEFlow, Encoder
from aeflow_monai.data import FeatureDataset, prepare_slice_batch
from aeflow_monai.engine.inference.allocator import keep_freed_memory
from aeflow_monai.network import AEFlowLoss


class RandomSlices(Dataset):
    """Images of noise."""

    def __init__(self, count: int, size: int) -> None:
        self.images = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index]}


def epoch(model: AEFlow, dataset: Dataset, batch_size: int) -> None:
    loss_function = AEFlowLoss()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    model.train()
    for batch in DataLoader(dataset, batch_size=batch_size, shuffle=True):
        image, target, _, options = prepare_slice_batch(batch)
        optimizer.zero_grad()
        loss_function(model(image, **options), target).backward()
        optimizer.step()


def main() -> None:
    parser = arguments(__doc__)
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
    print(machine())
    making = seconds(lambda: FeatureDataset(slices, encoder))
    print(f"computing the features of {options.images} images once: {making:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        datasets = {
            "encoder in the loop": slices,
            "kept in memory": FeatureDataset(slices, encoder),
            "kept on disk": FeatureDataset(slices, encoder, folder),
        }
        ways = {name: partial(epoch, model, dataset, options.batch_size) for name, dataset in datasets.items()}
        times = in_turn(ways, options.repeats)
    for name, taken in times.items():
        ratio = median_ratio(times["encoder in the loop"], taken)
        of = f"(median of {options.repeats})"
        print(f"{name:>20}: {statistics.median(taken):7.2f} s per epoch, ratio {ratio:5.2f} {of}")


if __name__ == "__main__":
    main()

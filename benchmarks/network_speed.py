"""Full scoring of an image, maps included, against the bare encoder of the same network.

Both see the same batch, in turn, in one process; weights are random, which takes the same time. Usage:

    python benchmarks/network_speed.py [--config configs/paper.yaml] [--batch_size 16] [--repeats 5] [--parts]

With --parts the flow, the decoder and the score are timed too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from aeflow_monai.engine.workflow import keep_freed_memory
from aeflow_monai.score.scoring import AnomalyScorer
from monai.bundle import ConfigParser

ROOT = Path(__file__).parent.parent


def network_of(config: Path | None) -> tuple[AnomalyScorer, ConfigParser]:
    """The network of train.yaml and an overlay, with random weights."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / "bundle/configs/train.yaml"), *([str(config)] if config else [])])
    parser.update({"device": "cpu", "initial_weights": "random"})
    return parser.get_parsed_content("network").eval(), parser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="overlay of train.yaml")
    parser.add_argument("--image_size", type=int, nargs=2, help="the config's by default")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", action="store_true")
    given = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    scorer, config = network_of(given.config)
    aeflow = scorer.aeflow
    image = torch.rand(given.batch_size, config["in_channels"], *(given.image_size or config["image_size"]))
    timed: dict[str, Callable[[], Any]] = {
        "encoder": lambda: aeflow.encoder(image),
        "scoring": lambda: scorer.maps(image),
    }
    if given.parts:
        with torch.no_grad():
            features = aeflow.encoder(image)
            output = aeflow(image, features)
        timed["flow"] = lambda: [flow(stage) for flow, stage in zip(aeflow.flows, features, strict=True)]
        timed["decoder"] = lambda: aeflow.decoder(output.latents)
        timed["score"] = lambda: scorer.anomaly_map(output, image)
    times: dict[str, list[float]] = {name: [] for name in timed}
    with torch.no_grad():
        for _ in range(given.repeats + 1):
            for name, call in timed.items():
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) / len(image) * 1000)
    found = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first round warms up
    print(f"{tuple(image.shape)}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, value in found.items():
        print(f"{name}: {value:.1f} ms per image, {value / found['encoder']:.2f} times the encoder")


if __name__ == "__main__":
    main()

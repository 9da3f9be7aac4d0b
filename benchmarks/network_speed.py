"""Time of the full scoring of an image, with maps, against the encoder of the same network alone.

Both process the same batch, in turn, in one process; weights are random, which does not affect the time. Usage:

    python benchmarks/network_speed.py [--config paper] [--batch_size 16] [--repeats 5] [--normals 1000] [--parts]

The global term compares with the given number of synthetic normals. With --parts the flow, the decoder, the anomaly
map and the global term are also timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from shared import arguments, in_turn, machine, template

from aeflow_monai import Detector
from aeflow_monai.engine.inference.allocator import keep_freed_memory
from aeflow_monai.score import foreground_of, pooled_features


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", help="on top of train.yaml: name of a preset, or path")
    parser.add_argument("--image_size", type=int, nargs=2, help="the config's by default")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--normals", type=int, default=1000, help="that the global term stores")
    given = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    config = template(*([given.config] if given.config else []), encoder_weights="random")
    detector: Detector = config.get_parsed_content("network_def").eval()
    network, score = detector.network, detector.score
    image = torch.rand(given.batch_size, config["in_channels"], *(given.image_size or config["image_size"]))
    with torch.no_grad():
        features = network.encoder(image)
    pooled = pooled_features(features)
    if score.has_global_term:
        score.global_term.fit(torch.randn(given.normals, *pooled.shape[1:]))
    timed: dict[str, Callable[[], Any]] = {
        "encoder": lambda: network.encoder(image),
        "scoring": lambda: detector.maps(image),
    }
    if given.parts:
        with torch.no_grad():
            output = network(image, features)
        timed["flow"] = lambda: [flow(stage) for flow, stage in zip(network.flows, features, strict=True)]
        timed["decoder"] = lambda: network.decoder(output.latents)
        timed["anomaly map"] = lambda: score.anomaly_map(
            score.stack(detector.terms(output, image), foreground_of(image))
        )
        if score.has_global_term:
            timed["global term"] = lambda: score.global_term(pooled)
    with torch.no_grad():
        times = in_turn(timed, given.repeats)
    found = {name: 1000 * statistics.median(taken) / len(image) for name, taken in times.items()}
    print(f"{tuple(image.shape)}, {machine()}")
    for name, value in found.items():
        print(f"{name}: {value:.1f} ms per image, {value / found['encoder']:.2f} times the encoder")


if __name__ == "__main__":
    main()

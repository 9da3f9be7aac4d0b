"""Time of the full scoring of an image by each runtime, with maps, against the encoder alone in torch.

All process the same batch, in turn, in one process; the encoder is pretrained, the rest untrained, which does not
affect the time. Usage:

    OMP_NUM_THREADS=1 python benchmarks/runtime_speed.py [--image_size 128 256] [--batch_size 16] [--repeats 9]
        [--normals 1000]

The global term compares with the given number of synthetic normals. Times are processor times, which other programs
affect less than wall-clock times. It also prints how far each runtime's scores differ from those of the torch network.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from shared import arguments, commit, in_turn, machine, median_ratio, template

from aeflow_monai import Detector
from aeflow_monai.engine.inference.allocator import keep_freed_memory
from aeflow_monai.engine.inference.fast_inference import FastInference
from aeflow_monai.engine.inference.runtimes import RUNTIMES, installed_runtimes
from aeflow_monai.network.folded_encoder import fold_encoder
from aeflow_monai.score import pooled_features


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--image_size", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--normals", type=int, default=1000, help="that the global term stores")
    given = parser.parse_args()
    keep_freed_memory()
    print(f"batch {given.batch_size}, {machine()}, commit {commit()}")
    for size in given.image_size:
        measure(size, given.batch_size, given.repeats, given.normals)


def processor_seconds(way: Callable[[], Any]) -> float:
    """Return the processor seconds of a call over all threads of this process."""
    start = time.process_time()
    way()
    return time.process_time() - start


def measure(size: int, batch_size: int, repeats: int, n_normals: int) -> None:
    torch.manual_seed(0)
    detector: Detector = template().get_parsed_content("network_def").eval()
    image = torch.rand(batch_size, detector.network.encoder.in_channels, size, size)
    with torch.no_grad():
        pooled = pooled_features(detector.network.encoder(image))
        detector.score.global_term.fit(torch.randn(n_normals, *pooled.shape[1:]))
        expected = detector.score(detector.infer(image)[0]).anomaly_map
        folded = fold_encoder(detector.network.encoder).to(memory_format=torch.channels_last)
        timed: dict[str, Callable[[], Any]] = {
            "encoder": lambda: detector.network.encoder(image),
            "encoder, folded": lambda: folded(image),
            "scoring as trained": lambda: detector.maps(image),
        }
        differences = {}
        for name in RUNTIMES[1:]:
            if name not in installed_runtimes():
                continue
            # maps that are not requested are not computed
            fast = FastInference(detector, name, maps=[])

            def scoring(fast: FastInference = fast) -> Any:
                return detector.score(fast.infer(image)[0])

            timed[f"scoring, {name}"] = scoring
            differences[f"scoring, {name}"] = float((scoring().anomaly_map - expected).abs().max())
        times = in_turn(timed, repeats, measure=processor_seconds)
    print(f"{size} x {size}")
    for name, taken in times.items():
        line = f"{name}: {1000 * statistics.median(taken) / batch_size:.1f} ms per image, "
        line += f"{median_ratio(taken, times['encoder']):.2f} times the encoder"
        print(line + (f", maps differ by {differences[name]:.1e}" if name in differences else ""), flush=True)


if __name__ == "__main__":
    main()

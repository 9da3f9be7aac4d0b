"""Time of the default encoder on a CPU with glibc's default allocator settings, and with freed memory kept.

Each setting runs in a process of its own, in turn, since it cannot be reset. Usage:

    python benchmarks/allocator_speed.py [--batch_size 16] [--repeats 3]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial

import torch
from shared import arguments, in_turn, median_ratio, own_measure, seconds

from aeflow_monai import Encoder
from aeflow_monai.engine.inference.allocator import keep_freed_memory

CALLS = 5


def milliseconds_per_image(batch_size: int) -> float:
    encoder = Encoder()
    image = torch.rand(batch_size, 1, 256, 256)
    encoder(image)
    return seconds(lambda: [encoder(image) for _ in range(CALLS)]) / CALLS / batch_size * 1000


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=["as it is", "kept"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        if options.measure == "kept":
            keep_freed_memory()
        print(milliseconds_per_image(options.batch_size))
        return

    def measured(setting: str) -> float:
        command = [sys.executable, __file__, "--batch_size", str(options.batch_size), "--measure", setting]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    ways = {setting: partial(measured, setting) for setting in ("as it is", "kept")}
    times = in_turn(ways, options.repeats, warm_up=False, measure=own_measure)
    for setting, values in times.items():
        print(f"{setting}: {', '.join(f'{value:.1f}' for value in values)} ms per image")
    ratio = median_ratio(times["as it is"], times["kept"])
    print(f"kept is {ratio:.2f} times as fast (median of {options.repeats})")


if __name__ == "__main__":
    main()

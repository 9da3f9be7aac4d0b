"""Time of the default encoder on a CPU with glibc's allocator as it is, and with freed memory kept.

Each setting runs in a process of its own, in turn, since the setting cannot be taken back. Usage:

    python benchmarks/allocator.py [--batch_size 16] [--repeats 3]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch
from aeflow_monai.engine.workflow import keep_freed_memory

from aeflow_monai.network.encoder import Encoder


def milliseconds_per_image(batch_size: int) -> float:
    encoder = Encoder()
    image = torch.rand(batch_size, 1, 256, 256)
    encoder(image)
    start = time.perf_counter()
    for _ in range(5):
        encoder(image)
    return (time.perf_counter() - start) / 5 / batch_size * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=["as it is", "kept"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        if options.measure == "kept":
            keep_freed_memory()
        print(milliseconds_per_image(options.batch_size))
        return
    ratios = []
    for _ in range(options.repeats):
        times = {}
        for setting in ("as it is", "kept"):
            command = [sys.executable, __file__, "--batch_size", str(options.batch_size), "--measure", setting]
            times[setting] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ratios.append(times["as it is"] / times["kept"])
        print(", ".join(f"{setting}: {value:.1f} ms per image" for setting, value in times.items()))
    print(f"kept is {sorted(ratios)[len(ratios) // 2]:.2f} times as fast (median of {len(ratios)})")


if __name__ == "__main__":
    main()

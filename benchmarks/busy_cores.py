"""Cost of waiting threads: time of training steps on idle cores, and on cores shared with other processes.

    python benchmarks/busy_cores.py [--others 3] [--seconds 10]

One process trains AE-Flow on random images, first alone, then beside several others that do the same; with torch's
default threads, with GOMP_SPINCOUNT=1000 (as `aeflow` sets it), with OMP_WAIT_POLICY=passive and with one thread each.
GNU OpenMP, which torch uses on Linux, lets waiting threads spin for milliseconds; with more threads than free cores,
they block the thread that they wait for. The output is the seconds per step of the first process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

SETTINGS: dict[str, dict[str, str]] = {
    "torch's threads": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}


def train(seconds: float) -> float:
    """Return seconds per step of the bundle's network, batch 16 at 128 x 128."""
    import torch

    from aeflow_monai.network import AEFlow, AEFlowLoss, Encoder

    image = torch.rand(16, 1, 128, 128)
    network = AEFlow(Encoder(), feature_norm="image").train()
    features, loss = network.encoder(image), AEFlowLoss()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3, fused=True)
    times = []
    while not times or times[-1] - times[0] < seconds:
        optimizer.zero_grad()
        loss(network(image, features), image).backward()
        optimizer.step()
        times.append(time.perf_counter())
    return (times[-1] - times[0]) / max(1, len(times) - 1)


def measured(setting: dict[str, str], others: int, seconds: float) -> float:
    """Return seconds per step of one process beside others."""
    names = {name for each in SETTINGS.values() for name in each}
    environment = {name: value for name, value in os.environ.items() if name not in names} | setting
    command = [sys.executable, __file__, "--seconds", str(seconds)]
    beside = [
        subprocess.Popen([*command, "--step", "endless"], env=environment, stdout=subprocess.DEVNULL)
        for _ in range(others)
    ]
    try:
        done = subprocess.run([*command, "--step", "one"], env=environment, stdout=subprocess.PIPE, check=True)
    finally:
        for process in beside:
            process.kill()
            process.wait()
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--step", choices=["one", "endless"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(train(given.seconds if given.step == "one" else 1e6))
        return
    from shared import commit, processor

    print(f"Commit {commit()}; {processor()}. Seconds per training step.\n")
    print(f"| threads | alone | beside {given.others} others |\n|---|---:|---:|")
    for name, setting in SETTINGS.items():
        alone, busy = (measured(setting, others, given.seconds) for others in (0, given.others))
        print(f"| {name} | {alone:.2f} | {busy:.2f} |", flush=True)


if __name__ == "__main__":
    main()

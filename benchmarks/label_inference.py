"""Time of a first answer by the MONAI Label app against the same inference from the command line.

The volume is made up (240 x 240 x 155, a noisy ellipsoid in an empty background). The server's time runs from the start
of its process, which loads the model before it listens, to the mask that MONAI Label's client has received; the command
line's from the start of `python -m monai.bundle run` to its end, with the mask alone written. Both are a process of
their own, in turn. `scoring` lets the server also score the studies in the background, as it does for a user. Needs an
environment with the extra `label`. Usage:

    python benchmarks/label_inference.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from monailabel.client import MONAILabelClient
from volume_inference import INFERENCE, write_checkpoint, write_volume

OPTIONS = {"image_size": [240, 240], "fit": "pad", "device": "cpu"}
OFF = ("anomaly_map", "reconstruction", "residual", "log_likelihood", "overlay", "profile")


def seconds_of_command_line(folder: Path) -> float:
    options = {f"write_{name}": False for name in OFF} | OPTIONS
    options |= {"dataset_dir": folder / "studies/volume.nii.gz", "ckpt_path": folder / "model.pt"}
    options |= {"output_dir": folder / "maps"}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(INFERENCE)]
    start = time.perf_counter()
    subprocess.run([*command, *(f"--{k}={v}" for k, v in options.items())], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


@contextmanager
def running_server(folder: Path, *options: str, **environment: str) -> Iterator[MONAILabelClient]:
    """A server for `folder`/studies as soon as it listens, with a new worklist, and its client."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for record in (folder / "studies").glob("datastore*.json"):
        record.unlink()
    command = [sys.executable, "-m", "aeflow_monai.cli", "label", "--studies", str(folder / "studies")]
    command += ["--app", str(folder / "app"), "--port", str(port), *options]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            if server.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text())
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield MONAILabelClient(f"http://127.0.0.1:{port}", tmpdir=str(folder))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def seconds_of_server(folder: Path, scoring: bool) -> tuple[float, float]:
    """Until the first answer, and of that the answer alone."""
    options = ("--config", str(folder / "overlay.yaml"), "--model", str(folder / "model.pt"))
    start = time.perf_counter()
    with running_server(folder, *options, MONAI_LABEL_AUTO_UPDATE_SCORING=str(scoring).lower()) as client:
        asked = time.perf_counter()
        client.infer("anomaly_mask", "volume", {})
        end = time.perf_counter()
    return end - start, end - asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "studies").mkdir()
        write_volume(folder / "studies/volume.nii.gz")
        write_checkpoint(folder / "model.pt", dict(OPTIONS))
        (folder / "overlay.yaml").write_text(yaml.safe_dump(OPTIONS))
        ratios: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(repeats + 1):  # the first turn warms up
            line = seconds_of_command_line(folder)
            for scoring, found in ratios.items():
                whole, answer = seconds_of_server(folder, scoring)
                if turn:
                    found.append(whole / line)
                    print(
                        f"command line {line:.1f} s, server {whole:.1f} s (answer alone {answer:.1f} s)"
                        f"{' with scoring' if scoring else ''}, ratio {found[-1]:.2f}",
                        flush=True,
                    )
        for scoring, found in ratios.items():
            print(f"median ratio {sorted(found)[len(found) // 2]:.2f}{' with scoring' if scoring else ''}")


if __name__ == "__main__":
    main()

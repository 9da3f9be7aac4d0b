"""Time to the first answer of the MONAI Label app, against the same inference on the command line.

The volume is synthetic (240 x 240 x 155, a noisy ellipsoid in an empty background). The server's time runs from the
start of its process, which loads the model before it listens, until MONAI Label's client has received the mask; the
command line's from the start of `python -m monai.bundle run` to its end, with only the mask written. Both run in a
process of their own, in turn. `scoring` lets the server also score the studies in the background, as it does for a
user. Needs an environment with the extra `label`. Usage:

    python benchmarks/label_inference.py [--repeats 3]
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monailabel.client import MONAILabelClient
from shared import (
    LARGE,
    arguments,
    bundle_command,
    in_turn,
    machine,
    median_ratio,
    own_measure,
    seconds,
    write_untrained,
    write_volume,
)


def seconds_of_command_line(run: Path, folder: Path) -> float:
    """Return seconds from the start of the process to its end."""
    options = {
        "dataset_dir": folder / "studies/volume.nii.gz",
        "output_dir": folder / "maps",
        "outputs": "['anomaly_mask']",
        "device": "cpu",
    }
    command = bundle_command([run / "configs/inference.yaml"], options)
    return seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


@contextmanager
def running_server(folder: Path, run: Path, **environment: str) -> Iterator[MONAILabelClient]:
    """Run a server for `folder`/studies with a model and a new worklist; yield its client once the server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for record in (folder / "studies").glob("datastore*.json"):
        record.unlink()
    command = [sys.executable, "-m", "aeflow_monai.cli.main", "label", "--studies", str(folder / "studies")]
    command += ["--app", str(folder / "app"), "--port", str(port), "--model", str(run)]
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


def seconds_of_server(run: Path, folder: Path, scoring: bool) -> float:
    """Return seconds from the start of the process to the first answer, and print the part of the answer alone."""
    start = time.perf_counter()
    with running_server(folder, run, MONAI_LABEL_AUTO_UPDATE_SCORING=str(scoring).lower()) as client:
        asked = time.perf_counter()
        client.infer("anomaly_mask", "volume", {})
        end = time.perf_counter()
    print(f"  answer alone {end - asked:.1f} s{' with scoring' if scoring else ''}", flush=True)
    return end - start


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "studies").mkdir()
        write_volume(folder / "studies/volume.nii.gz")
        run = write_untrained(folder / "RUN", **LARGE)
        found = in_turn(
            {
                "command line": lambda: seconds_of_command_line(run, folder),
                "server": lambda: seconds_of_server(run, folder, scoring=False),
                "server with scoring": lambda: seconds_of_server(run, folder, scoring=True),
            },
            repeats,
            measure=own_measure,
        )
        for way, times in found.items():
            ratio = median_ratio(times, found["command line"])
            print(f"{way}: {', '.join(f'{time:.1f}' for time in times)} s, median ratio {ratio:.2f}")


if __name__ == "__main__":
    main()

"""What the tests of archives share: their studies, and waiting for a ledger."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from aeflow_monai.archive import Ledger, Study
from aeflow_monai.archive.ledger import LEDGER

OUTPUTS = ("--outputs", "anomaly_map,anomaly_mask", "--device", "cpu")
Start = Callable[..., "subprocess.Popen[str]"]


class Scans(NamedTuple):
    """A folder of studies, and a list of them beside them that has a repeated, a damaged and a missing one too."""

    folder: Path
    listed: Path
    n_whole: int


def a_shard(folder: Path, number: int, *names: str, source: str = "l", **read: str) -> None:
    """A ledger with a study that is done, and others that are open."""
    path = folder / "shards" / f"{number}-of-2"
    path.mkdir(parents=True)
    with Ledger(path / LEDGER) as ledger:
        record = {
            "record": {"machine": {}},
            "runtime": "torch",
            "model": "RUN",
            "model_sha256": "0",
            "options_sha256": "0",
            "version": "0",
        }
        ledger.set(shard=[number, 2], source=source, **record, **read)
        ledger.begin([Study(f"{number}/{name}.png", {"image": f"{name}.png", "case": name}) for name in names])
        (claim,) = ledger.claim(1)
        ledger.done(claim.number, {"anomaly_score": 0.5, "threshold": 0.4, "prediction": 1})


def wait_until_done(out: Path, n: int, process: "subprocess.Popen[str]", shard: str = "1-of-1") -> None:
    """Wait until a ledger has so many studies that are done."""
    path = out / "shards" / shard / LEDGER
    for _ in range(12000):
        if process.poll() is not None:
            raise RuntimeError(f"It ended with {process.returncode}: {process.stdout and process.stdout.read()}")
        if path.is_file():
            with Ledger(path, read_only=True) as ledger:
                if ledger.is_begun and ledger.counts().done >= n:
                    return
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    raise TimeoutError(f"{n} studies were not done.")

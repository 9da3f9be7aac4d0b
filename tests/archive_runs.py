"""What the tests of archives share: their studies, and shards that are not done."""

from pathlib import Path
from typing import NamedTuple

from aeflow_monai.archive import Ledger, Study
from aeflow_monai.archive.ledger import LEDGER

OUTPUTS = ("--outputs", "anomaly_map,anomaly_mask", "--device", "cpu")


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

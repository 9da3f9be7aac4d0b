"""Ledgers of several shards as one."""

from pathlib import Path

from aeflow_monai.archive.ledger import LEDGER, Ledger
from aeflow_monai.archive.listed import Study
from aeflow_monai.archive.merged import merge


def a_shard(folder: Path, number: int, *names: str) -> None:
    """A ledger with a study that is done, and others that are open."""
    path = folder / "shards" / f"{number}-of-2"
    path.mkdir(parents=True)
    with Ledger(path / LEDGER) as ledger:
        record = {
            "record": {},
            "model": "RUN",
            "model_sha256": "0",
            "options_sha256": "0",
            "version": "0",
        }
        ledger.set(shard=[number, 2], source="l", **record)
        ledger.begin([Study(f"{number}/{name}.png", {"image": f"{name}.png", "case": name}) for name in names])
        (claim,) = ledger.claim(1)
        ledger.done(claim.number, {"anomaly_score": 0.5})


def test_cases_of_two_shards_with_one_name_are_told(tmp_path: Path) -> None:
    a_shard(tmp_path, 1, "Sub_a", "b", "É")
    a_shard(tmp_path, 2, "sub_A", "c", "é")
    merged = merge(tmp_path)
    assert merged.same_names == {"sub_a"}
    assert tuple(merged.counts) == (2, 0, 4)

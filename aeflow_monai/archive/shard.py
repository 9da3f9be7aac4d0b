"""Shards: which of several processes a study belongs to, by its path alone, and what one is scored with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SAME", "SHARDS", "Shard", "ShardRun", "short"]

SHARDS = "shards"  # folder of the results that holds a folder for each
# What all runs of one folder have to share, and what to call it where they do not.
SAME = {
    "model_sha256": "another model",
    "options_sha256": "other options",
    "version": "another version of aeflow_monai",
    "runtime": "another runtime",
    "source": "another list",
}


class Shard(NamedTuple):
    """One of several parts of an archive.

    A study belongs to a shard by a hash of its path: no process has to know the others, and lines that are added to a
    list, or put in another order, move no study. Shards are therefore of nearly, not exactly, the same size.

    Attributes:
        number: from 1.
        total: how many shards there are.

    Example:
        >>> shard = Shard.parse("3/16")
        >>> shard.folder, shard.holds("sub-01/t1.nii.gz")
        ('03-of-16', False)
    """

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read what stands on a command line.

        Args:
            text: as "3/16".

        Raises:
            ValueError: it is no shard.
        """
        found = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(
                f"--shard: expected K/N, such as 3/16, with K from 1 to N; got {text!r}. Of an index that counts from "
                "0, add 1."
            )
        return cls(int(found[1]), int(found[2]))

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.number:0{len(str(self.total))}d}-of-{self.total}"

    def holds(self, key: str) -> bool:
        """Whether a study belongs to this shard.

        Args:
            key: of the study, see `aeflow_monai.archive.Study`.
        """
        if self.total == 1:
            return True
        digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.total == self.number - 1


class ShardRun(NamedTuple):
    """What a shard is scored with.

    Attributes:
        model: folder of a training.
        source: list or folder of the images.
        folder: of the results of all shards.
        shard: of several.
        options: of the config, by name, as they would be typed.
        command: as it was typed, for the record.
    """

    model: Path
    source: Path
    folder: Path
    shard: Shard
    options: Mapping[str, str]
    command: str = ""

    @property
    def shard_folder(self) -> Path:
        """Folder of the shard's ledger and files."""
        return self.folder / SHARDS / self.shard.folder


def short(value: Any) -> str:
    """A setting of a shard as messages show it: of a hash its beginning."""
    return str(value)[:12] if re.fullmatch("[0-9a-f]{64}", str(value)) else str(value)

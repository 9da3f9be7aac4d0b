"""Shards: the assignment of studies to processes by their paths alone, and the settings of a shard's run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SAME", "SHARDS", "Shard", "ShardRun", "short"]

SHARDS = "shards"  # subfolder of the output folder with a folder per shard
# Settings that all runs of one folder have to share, with their names for messages.
SAME = {
    "model_sha256": "another model",
    "options_sha256": "other options",
    "version": "another version of aeflow_monai",
    "runtime": "another runtime",
    "source": "another list",
}


class Shard(NamedTuple):
    """One of several parts of an archive.

    A study is assigned to a shard by a hash of its path, so that processes need not know each other, and adding or
    reordering lines of a list moves no study. Shards are therefore nearly, not exactly, of the same size.

    Attributes:
        number: number of the shard, from 1.
        total: number of all shards.

    Example:
        >>> shard = Shard.parse("3/16")
        >>> shard.folder, shard.holds("sub-01/t1.nii.gz")
        ('03-of-16', False)
    """

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse the shard on a command line.

        Args:
            text: text such as "3/16".

        Raises:
            ValueError: it is not a shard.
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
        """Name of the shard's folder."""
        return f"{self.number:0{len(str(self.total))}d}-of-{self.total}"

    def holds(self, key: str) -> bool:
        """Return whether a study belongs to this shard.

        Args:
            key: key of the study, see `aeflow_monai.archive.Study`.
        """
        if self.total == 1:
            return True
        digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.total == self.number - 1


class ShardRun(NamedTuple):
    """The settings of a shard's run.

    Attributes:
        model: folder of a training.
        source: list or folder of the images.
        folder: output folder of all shards.
        shard: the shard.
        options: config options by name, as typed.
        command: the command as typed, for the record.
    """

    model: Path
    source: Path
    folder: Path
    shard: Shard
    options: Mapping[str, str]
    command: str = ""

    @property
    def shard_folder(self) -> Path:
        """Folder of the shard's ledger and outputs."""
        return self.folder / SHARDS / self.shard.folder


def short(value: Any) -> str:
    """Format a setting of a shard for messages; hashes are abbreviated."""
    return str(value)[:12] if re.fullmatch("[0-9a-f]{64}", str(value)) else str(value)

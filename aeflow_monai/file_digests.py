"""Hashes of files, by which they are recognised."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from aeflow_monai.compression import DAMAGED, gzip

__all__ = ["digest_of", "sha256_of", "unpacked_digest_of"]

_MOST_UNPACKED = 2**33  # bytes: a .gz file may expand without limit


def sha256_of(file: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(file).open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def digest_of(file: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes, cached until its size or modification time changes."""
    found = Path(file).stat()
    return _digest(str(file), found.st_size, found.st_mtime_ns)


def unpacked_digest_of(file: str | Path) -> str:
    """Like `digest_of`, but of a .gz file's decompressed bytes, unless it is damaged or exceeds 8 GiB."""
    if Path(file).suffix.lower() != ".gz":
        return digest_of(file)
    found = Path(file).stat()
    return _unpacked_digest(str(file), found.st_size, found.st_mtime_ns) or digest_of(file)


@cache
def _digest(file: str, size: int, changed_ns: int) -> str:
    return sha256_of(file)


@cache
def _unpacked_digest(file: str, size: int, changed_ns: int) -> str:
    digest, rest = hashlib.sha256(), _MOST_UNPACKED
    try:
        with gzip.open(file) as stream:
            while block := stream.read(2**20):
                digest.update(block)
                rest -= len(block)
                if rest < 0:
                    return ""
    except DAMAGED:
        return ""
    return digest.hexdigest()

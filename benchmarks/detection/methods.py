"""Names of methods, and what they stand for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml
from peers import Peer, PlainAutoencoder, PooledNeighbours

VARIANTS = Path(__file__).parent / "variants"
RESCORED = "_rescored"
OWN = {"autoencoder": PlainAutoencoder, "knn": PooledNeighbours}  # peers without anomalib


def peer_names() -> list[str]:
    """All other methods that can be run here."""
    theirs = ["patchcore", "padim", "fastflow", "cflow", "dfm"] if importlib.util.find_spec("anomalib") else []
    return [*theirs, *OWN]


def peer_kind(name: str) -> type[Peer]:
    """The class of another method."""
    if name in OWN:
        return OWN[name]
    from anomalib_peers import ANOMALIB  # its import takes seconds

    return ANOMALIB[name]


def variant_names() -> list[str]:
    """All variants of AE-Flow that lie in the folder."""
    return sorted(path.stem for path in VARIANTS.glob("*.yaml"))


def resolve(method: str) -> str:
    """A method as work.py takes it; names of variants become the paths of their configs."""
    if method == "aeflow" or (rescored(method) or method) in peer_names():
        return method
    for path in (Path(method), VARIANTS / f"{method}.yaml"):
        if path.suffix == ".yaml" and path.is_file():
            return str(path.absolute())
    raise SystemExit(
        f"Unknown method {method!r}: expected the path of a config, or one of "
        f"{', '.join(['aeflow', *variant_names(), *peer_names()])}. anomalib's methods need the extra `bench`."
    )


def options_of(method: str) -> dict[str, Any] | None:
    """The options of a variant of AE-Flow, none for AE-Flow itself; None if the method is another one."""
    if method == "aeflow":
        return {}
    if method.endswith(".yaml"):
        return yaml.safe_load(Path(method).read_text(encoding="utf-8")) or {}
    return None


def rescored(method: str) -> str | None:
    """Whose maps a method rescores; None if it is no such method."""
    return method.removesuffix(RESCORED) if method.endswith(RESCORED) else None


def label_of(method: str) -> str:
    """A method's name, which is its folder's too."""
    return Path(method).stem if method.endswith(".yaml") else method

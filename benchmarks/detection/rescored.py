"""Another method's maps, with all that AE-Flow does with its own: position, slices, level, fractions, thresholds.

It tells what of a difference is the network's, and what any method could have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from map_inferer import Answer
from peers import FittedPeer, Peer
from torch import Tensor

from aeflow_monai import Slicer
from aeflow_monai.engine.inference.detector import places_of
from aeflow_monai.score import NormalSlices, foreground_of


class RescoredPeer(FittedPeer):
    """A fitted peer whose maps are the single term of the calibrated `Score`."""

    def infer(self, stack: Tensor, chosen: Tensor) -> Answer:
        """Look at the chosen slices of a volume."""
        maps, places = super().infer(stack, chosen).maps, Slicer.places(chosen, "axial")
        slices = self.score.stack(maps, foreground_of(stack[chosen]), places)
        scored = self.score(self.score.blurred(slices))
        return Answer(scored.slice_scores, scored.anomaly_map)


class MapsOfNormals:
    """A peer's maps of batches of normals, for `calibrate_score`; the peer runs whenever they are iterated."""

    def __init__(self, peer: Peer, batches: Iterable[Mapping[str, Any]]) -> None:
        self.peer = peer
        self.batches = batches

    def __iter__(self) -> Iterator[NormalSlices]:
        for batch in self.batches:
            image = batch["image"]
            maps = self.peer(image).maps
            yield NormalSlices(maps, foreground_of(image), batch["patient"], batch["file"], places_of(batch))

"""Another method's maps, with all that AE-Flow does with its own: by place, through slices, level, shares, thresholds.

It tells what of a difference is the network's, and what any method could have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aeflow_monai.network.aeflow import AEFlow, AEFlowOutput
from aeflow_monai.score.scoring import AnomalyScorer


class RescoredPeer(AnomalyScorer):
    """The calibrated score with another method's map in place of the flow's term, and nothing else.

    Args:
        aeflow: is there since the score asks for its stages; what it says is not used.
        peer_path: of the fitted method, a `Peer`.
        options: of `AnomalyScorer`; beta and ease_weight, which weigh the reconstruction, are set to 1 and 0.
    """

    def __init__(self, aeflow: AEFlow, peer_path: str | Path, **options: Any) -> None:
        super().__init__(aeflow, **{**options, "beta": 1.0, "ease_weight": 0.0})
        self.peer = torch.load(peer_path, weights_only=False).eval()

    def terms(self, output: AEFlowOutput, image: Tensor) -> Tensor:
        """The method's maps of images (N, C, H, W), as the term of each stage; nothing of the reconstruction."""
        maps = self.peer(image).maps
        return torch.cat([maps.expand(-1, len(self.aeflow.flows), -1, -1), torch.zeros_like(maps)], dim=1)

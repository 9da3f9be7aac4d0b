"""Other methods, fitted and asked as AE-Flow is: on the same slices, with features of the same frozen encoder.

Each class is a network: `fit` on normals, then `forward` gives the score of each image by the method's own rule, and
its anomaly map. anomalib's are in anomalib_peers.py, since not everybody has it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from map_inferer import Answer, MapMethod
from monai.data import DataLoader
from monai.networks.nets import AutoEncoder
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from aeflow_monai import Encoder, Score
from aeflow_monai.data import prepare_slice_batch

BATCH_SIZE = 16
STAGES = (1, 2, 3)  # strides 4, 8 and 16: what the backbone's features are kept of


class SharedEncoder(nn.Module):
    """AE-Flow's encoder where another method has its feature extractor, or features that were kept of it.

    Args:
        encoder: frozen.
        as_list: give a list, as timm does, instead of a dictionary by layer.
    """

    def __init__(self, encoder: Encoder, as_list: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.as_list = as_list
        self.layers = [str(stride) for stride in encoder.strides]
        self.out_dims = encoder.channels
        self.kept: list[Tensor] | None = None

    def forward(self, image: Tensor) -> Any:
        """Features of the images (N, C, H, W), or those that were kept, see `Peer.batches`."""
        features = self.encoder(image) if self.kept is None else self.kept
        return features if self.as_list else dict(zip(self.layers, features, strict=True))


class Peer(nn.Module, ABC):
    """What all methods share.

    Args:
        encoder: frozen, with the method's stages.
        size: height and width of the images.
        epochs: passes over the normals, for methods that are trained; the last one counts.
    """

    stages: tuple[int, ...] = STAGES

    def __init__(self, encoder: Encoder, size: tuple[int, int], epochs: int) -> None:
        super().__init__()
        self.extractor = SharedEncoder(encoder)
        self.epochs = epochs

    def batches(self, dataset: Dataset[dict[str, Any]], shuffle: bool) -> Iterator[Tensor]:
        """Images of one epoch; while one is out, the extractor gives its kept features."""
        for batch in DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=shuffle):
            image, _, _, kept = prepare_slice_batch(batch)
            self.extractor.kept = kept["features"][-len(self.stages) :]  # the method's own of all that were kept
            yield image
        self.extractor.kept = None

    @abstractmethod
    def fit(self, dataset: Dataset[dict[str, Any]]) -> None:
        """Fit to normals; items hold "image" (C, H, W) and "features", one tensor for each of `STAGES`."""

    def forward(self, image: Tensor) -> Answer:
        """Score images (N, C, H, W) in [0, 1]."""
        answer = self.model(image)
        return Answer(answer.pred_score.flatten(), answer.anomaly_map)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """A step down the gradient of a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class PlainAutoencoder(Peer):
    """MONAI's convolutional autoencoder on pixels; its score is the mean squared error."""

    def __init__(self, encoder: Encoder, size: tuple[int, int], epochs: int) -> None:
        super().__init__(encoder, size, epochs)
        del self.extractor.encoder  # it sees pixels
        channels = encoder.in_channels
        self.model = AutoEncoder(2, channels, channels, channels=(16, 32, 64, 64), strides=(2, 2, 2, 2))

    def fit(self, dataset: Dataset[dict[str, Any]]) -> None:
        """Train on the mean squared error."""
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.train()
        for _ in range(self.epochs):
            for image in self.batches(dataset, shuffle=True):
                step(optimizer, F.mse_loss(self.model(image), image))

    def forward(self, image: Tensor) -> Answer:
        """Score images (N, C, H, W) in [0, 1]."""
        size = image.shape[-2:]
        error = (self.model(image)[..., : size[0], : size[1]] - image).square().mean(dim=1, keepdim=True)
        return Answer(error.mean(dim=(1, 2, 3)), error)


class PooledNeighbours(Peer):
    """Mean distance to the nearest normals of the mean features of strides 8 and 16, each channel standardised.

    It has no map: all of it has the image's score.
    """

    stages = (2, 3)
    n_neighbours = 5

    def _pooled(self, image: Tensor) -> Tensor:
        return torch.cat([features.mean(dim=(2, 3)) for features in self.extractor(image).values()], dim=1)

    def fit(self, dataset: Dataset[dict[str, Any]]) -> None:
        """Keep what normals have."""
        found = torch.cat([self._pooled(image) for image in self.batches(dataset, shuffle=False)])
        self.register_buffer("std", found.std(dim=0).clamp_min(1e-6))
        self.register_buffer("normals", found / self.std)

    def forward(self, image: Tensor) -> Answer:
        """Score images (N, C, H, W) in [0, 1]."""
        distances = torch.cdist(self._pooled(image) / self.std, self.normals)
        scores = distances.topk(min(self.n_neighbours, len(self.normals)), largest=False).values.mean(dim=1)
        return Answer(scores, scores.view(-1, 1, 1, 1).expand(-1, 1, *image.shape[-2:]))


class FittedPeer(MapMethod):
    """A fitted peer with its own maps and scores.

    Args:
        peer: fitted.
        score: for its thresholds, and the score of a case.
    """

    def __init__(self, peer: Peer, score: Score) -> None:
        super().__init__(score)
        self.peer = peer

    def infer(self, stack: Tensor, chosen: Tensor) -> Answer:
        """Look at the chosen slices of a volume, a batch at a time."""
        answers = [self.peer(part) for part in stack[chosen].split(BATCH_SIZE)]
        return Answer(torch.cat([each.scores for each in answers]), torch.cat([each.maps for each in answers]))

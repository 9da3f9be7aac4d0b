"""anomalib's PatchCore, PaDiM, FastFlow, CFLOW and DFM with its own settings, on AE-Flow's encoder.

Their feature extractor is replaced by this project's `Encoder`, so weights and input scaling are AE-Flow's. Stages are
what anomalib's defaults are in strides: 4, 8 and 16 for PaDiM and FastFlow (layer1 to layer3 of a ResNet-18), 8 and 16
for PatchCore (layer2 and layer3), 16 for DFM (layer3). CFLOW's default is 8, 16 and 32; here it has 4, 8 and 16 like
the other flows. Where a default does not end on a CPU, the class says what was done.
"""

from __future__ import annotations

from typing import Any

import torch
from anomalib.models.components import KCenterGreedy
from anomalib.models.image.cflow.torch_model import CflowModel
from anomalib.models.image.cflow.utils import cflow_head, get_logp, positional_encoding_2d
from anomalib.models.image.dfm.torch_model import DFMModel
from anomalib.models.image.fastflow.loss import FastflowLoss
from anomalib.models.image.fastflow.torch_model import FastflowModel, create_fast_flow_block
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from map_inferer import Answer
from peers import Peer, SharedEncoder, step
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from aeflow_monai import Encoder


class PaDiM(Peer):
    """A Gaussian per position over 100 of the features of strides 4, 8 and 16 (anomalib's number for a ResNet-18)."""

    def __init__(self, encoder: Encoder, size: tuple[int, int], epochs: int) -> None:
        super().__init__(encoder, size, epochs)
        self.model = PadimModel("resnet18", layers=["layer1"], pre_trained=False, n_features=1)
        self.model.feature_extractor = self.extractor
        self.model.layers = self.extractor.layers
        n_features = min(100, sum(encoder.channels))
        self.model.register_buffer("idx", torch.randperm(sum(encoder.channels))[:n_features])

    def fit(self, dataset: Dataset[dict[str, Any]]) -> None:
        """Mean and covariance of each position."""
        self.train()
        bank = torch.empty(0)  # filled in place: anomalib stacks a list, which takes the memory twice
        start = 0
        for image in self.batches(dataset, shuffle=False):
            found = self.model(image)
            self.model.memory_bank.clear()
            bank = bank if start else found.new_empty(len(dataset), *found.shape[1:])  # type: ignore[arg-type]
            bank[start : start + len(found)] = found
            start += len(found)
        self.model.gaussian.fit(bank)


class PatchCore(Peer):
    """Distance to the nearest of a core set of features of strides 8 and 16.

    anomalib's core set is a tenth of all features, chosen greedily among all; that takes days on a CPU for a thousand
    images. Here it is a hundredth, at most 5 000, chosen greedily among ten times as many that are drawn at random.
    """

    stages = (2, 3)
    share, largest, drawn_per_kept = 0.01, 5_000, 10

    def __init__(self, encoder: Encoder, size: tuple[int, int], epochs: int) -> None:
        super().__init__(encoder, size, epochs)
        self.model = PatchcoreModel(["layer2", "layer3"], "resnet18", pre_trained=False)
        self.model.feature_extractor = self.extractor
        self.model.layers = self.extractor.layers

    def fit(self, dataset: Dataset[dict[str, Any]]) -> None:
        """Collect features and choose the core set."""
        self.train()
        drawn = []
        for image in self.batches(dataset, shuffle=False):
            found = self.model(image)
            self.model.embedding_store.clear()
            n_drawn = max(1, int(self.share * self.drawn_per_kept * len(found)))
            drawn.append(found[torch.randperm(len(found))[:n_drawn]])
        candidates = torch.vstack(drawn)
        candidates = candidates[torch.randperm(len(candidates))[: self.largest * self.drawn_per_kept]]
        self.model.memory_bank = KCenterGreedy(candidates, 1 / self.drawn_per_kept).sample_coreset()


class DFM(Peer):
    """What principal components of all an image's features of stride 16, pooled, do not explain."""

    stages = (3,)

    def __init__(self, encoder: Encoder, size: tuple[int, int], epochs: int) -> None:
        super().__init__(encoder, size, epochs)
        self.model = DFMModel("resnet18", "layer3", pre_trained=False)
        self.model.feature_extractor = self.extractor
        self.model.layer = self.extractor.layers[0]

    def fit(self, dataset: Dataset[dict[str, Any]]) -> None:
        """Collect features and find their components."""
        self.train()
        for image in self.batches(dataset, shuffle=False):
            self.model(image)
        self.model.fit()


class FastFlow(Peer):
    """Eight flow steps on each of the strides 4, 8 and 16, after a layer norm of each image's features."""

    learning_rate, weight_decay = 1e-3, 1e-5

    def __init__(self, encoder: Encoder, size: tuple[int, int], epochs: int) -> None:
        super().__init__(encoder, size, epochs)
        self.extractor = SharedEncoder(encoder, as_list=True)
        self.model = FastflowModel(size, "resnet18", pre_trained=False)
        self.model.feature_extractor = self.extractor
        shapes = [
            [channels, size[0] // stride, size[1] // stride]
            for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
        ]
        self.model.norms = nn.ModuleList(nn.LayerNorm(shape) for shape in shapes)
        self.model.fast_flow_blocks = nn.ModuleList(
            create_fast_flow_block(shape, conv3x3_only=False, hidden_ratio=1.0, flow_steps=8) for shape in shapes
        )

    def fit(self, dataset: Dataset[dict[str, Any]]) -> None:
        """Train with anomalib's loss and optimiser."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        loss_function = FastflowLoss()
        self.train()
        for _ in range(self.epochs):
            for image in self.batches(dataset, shuffle=True):
                step(optimizer, loss_function(*self.model(image)))


class CFlow(Peer):
    """A flow for each of the strides 4, 8 and 16 over single positions, told where they lie.

    Two things differ from anomalib. It takes an optimiser step per 64 positions, 100 000 of them for an epoch of a
    thousand images: here a random eighth of the positions is seen in an epoch, 256 in a step, at its learning rate.
    And it divides the likelihoods by the highest one of the batch, so that an image's score depends on its neighbours,
    and single images cannot be compared: here it is the highest one of the last epoch's normals. The sum of the
    stages is negated, not taken from its highest value, which keeps small differences.
    """

    share, fibers_per_step = 8, 256
    learning_rate = 1e-4
    fibers_at_once = 4096  # for scoring; each is by itself, so this changes no value

    def __init__(self, encoder: Encoder, size: tuple[int, int], epochs: int) -> None:
        super().__init__(encoder, size, epochs)
        self.condition = CflowModel("resnet18", ["layer1"], pre_trained=False).condition_vector
        self.decoders = nn.ModuleList(
            cflow_head(
                condition_vector=self.condition,
                coupling_blocks=8,
                clamp_alpha=1.9,
                n_features=channels,
                permute_soft=False,
            )
            for channels in encoder.channels
        )
        self.register_buffer("highest", torch.full((len(self.decoders),), -torch.inf))

    def fit(self, dataset: Dataset[dict[str, Any]]) -> None:
        """Train as anomalib's `Cflow.training_step` does."""
        optimizer = torch.optim.Adam(self.decoders.parameters(), lr=self.learning_rate)
        self.train()
        for _ in range(self.epochs):
            self.highest.fill_(-torch.inf)
            for image in self.batches(dataset, shuffle=True):
                for stage, features in enumerate(self.extractor(image).values()):
                    fibers, positions = self._fibers(features)
                    seen = torch.randperm(len(fibers))[: max(1, len(fibers) // self.share)]
                    for chosen in seen.split(self.fibers_per_step):
                        likelihoods = self._likelihoods(stage, fibers[chosen], positions[chosen])
                        step(optimizer, -F.logsigmoid(likelihoods).mean())
                        self.highest[stage] = self.highest[stage].maximum(likelihoods.detach().max())

    def _fibers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C, h, w) as (N * h * w, C), and where they lie."""
        n_images, channels, height, width = features.shape
        positions = positional_encoding_2d(self.condition, height, width).flatten(1).T.repeat(n_images, 1)
        return features.permute(0, 2, 3, 1).reshape(-1, channels), positions

    def _likelihoods(self, stage: int, fibers: Tensor, positions: Tensor) -> Tensor:
        latent, log_det = self.decoders[stage](fibers, [positions])
        return get_logp(fibers.shape[1], latent, log_det) / fibers.shape[1]

    def forward(self, image: Tensor) -> Answer:
        """Score images (N, C, H, W) in [0, 1]."""
        total = torch.zeros(len(image), 1, *image.shape[-2:])
        for stage, features in enumerate(self.extractor(image).values()):
            fibers, positions = self._fibers(features)
            parts = [
                self._likelihoods(stage, *part)
                for part in zip(fibers.split(self.fibers_at_once), positions.split(self.fibers_at_once), strict=True)
            ]
            likely = (torch.cat(parts) - self.highest[stage]).exp()
            planes = likely.reshape(len(image), 1, *features.shape[-2:])
            total += F.interpolate(planes, size=image.shape[-2:], mode="bilinear", align_corners=True)
        return Answer(-total.flatten(1).amin(dim=1), -total)


ANOMALIB: dict[str, type[Peer]] = {
    "patchcore": PatchCore,
    "padim": PaDiM,
    "fastflow": FastFlow,
    "cflow": CFlow,
    "dfm": DFM,
}

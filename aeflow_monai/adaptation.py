"""Adapting the encoder to a domain, with normal images alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Dataset

from aeflow_monai.encoder import Encoder
from aeflow_monai.lesions import LesionSlices

__all__ = ["BothEncoders", "adapt_batch_norm", "adapt_by_lesions"]


class _Unfrozen(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.backbone, self.mean, self.std = encoder.backbone, encoder.mean, encoder.std

    def forward(self, image: Tensor) -> list[Tensor]:
        return list(self.backbone((image - self.mean) / self.std))


def _pairs(rows: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack([torch.as_tensor(row[key]).float() for row in rows]) for key in ("image", "lesion"))


def adapt_batch_norm(encoder: Encoder, slices: Dataset[Any], batch_size: int = 16) -> Encoder:
    """Take means and variances of batch norms from normal slices."""
    loader = DataLoader(
        slices,
        batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        collate_fn=lambda rows: torch.stack([torch.as_tensor(row["image"]) for row in rows]),
    )
    with torch.no_grad():
        update_bn(loader, _Unfrozen(encoder))
    encoder.train(encoder.training)
    return encoder


def adapt_by_lesions(
    encoder: Encoder, planted: LesionSlices, steps: int = 200, batch_size: int = 16, rate: float = 1e-4
) -> Encoder:
    """Train the backbone to find made-up lesions, with a linear head per stage that is thrown away."""
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        planted, batch_size, shuffle=True, generator=generator, drop_last=len(planted) > batch_size, collate_fn=_pairs
    )
    network = _Unfrozen(encoder)
    heads = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in encoder.channels)
    network.eval()
    encoder.backbone.requires_grad_(True)
    groups = [{"params": network.parameters(), "lr": rate}, {"params": heads.parameters(), "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups)
    done = 0
    with torch.enable_grad():
        while done < steps:
            for image, lesion in loader:
                loss = torch.zeros(())
                for head, stage in zip(heads, network(image), strict=True):
                    covered = F.adaptive_avg_pool2d(lesion, stage.shape[-2:])
                    sure = ((covered >= 0.15) | (covered < 0.01)).float()
                    each = F.binary_cross_entropy_with_logits(head(stage), (covered >= 0.15).float(), reduction="none")
                    loss = loss + (each * sure).sum() / sure.sum()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done += 1
                if done >= steps:
                    break
    encoder.requires_grad_(False)
    return encoder


class BothEncoders(nn.Module):
    """Two encoders as one: their features beside each other, stage by stage."""

    def __init__(self, first: Encoder, second: Encoder) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.in_channels, self.strides = first.in_channels, first.strides
        self.channels = [a + b for a, b in zip(first.channels, second.channels, strict=True)]
        self.train(False)

    def train(self, mode: bool = True) -> BothEncoders:
        """Stay in evaluation mode."""
        return super().train(False)  # frozen

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of images (N, C, H, W), see `Encoder.forward`."""
        return [torch.cat(pair, dim=1) for pair in zip(self.first(image), self.second(image), strict=True)]

"""Position normalisation: mean and deviation of normal anomaly maps at each place of a slice and of a volume.

Edges, folds and vessels are never predicted as well as plain tissue, so a flow gives the same places high values in
everybody. What is high in all normals is not abnormal.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.geometry import PLANES, Places

__all__ = ["UNKNOWN", "PositionMoments", "PositionNorm", "blur_through_slices"]

_GRID = 16  # rows and columns of the statistics, over the whole slice
_POSITIONS = 32  # of the statistics, from the first slice of a case to its last
# Neighbours count too, so that few cases are enough and cases need not lie exactly alike. All three were chosen on
# lesions planted into training subjects.
_SIGMA_IN_PLANE = 0.1  # of the slice's size
_SIGMA_OF_POSITION = 0.03  # of the distance from first to last slice
_PATIENTS_OF_ALL_PLACES = 0.3  # weight, in patients, of the statistics over all places

UNKNOWN = 1e30  # deviation where too few normals were seen to know one

_PLANE_NAMES = list(PLANES)


class PositionMoments:
    """Sum of weights, values and squares of normal maps, by place.

    Args:
        grid: rows and columns of the statistics; 1 for what has no place in the plane.

    Example:
        >>> moments = PositionMoments()
        >>> moments.add(torch.ones(2, 1, 32, 32), torch.ones(2, 1, 32, 32), None, "patient")
        >>> norm = PositionNorm()
        >>> norm.fit([moments])
        >>> norm.mean[0, 16].mean().item()
        1.0
    """

    def __init__(self, grid: int = _GRID) -> None:
        self.sums = torch.zeros(len(_PLANE_NAMES), _POSITIONS, 3, grid, grid, dtype=torch.float64)
        self.patients: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """Whether there was no foreground so far."""
        return not bool((self.sums[:, :, 0] > 0).any())

    def add(self, maps: Tensor, foreground: Tensor, places: Places | None, patient: str) -> None:
        """Add maps of slices.

        Args:
            maps: (N, 1, H, W).
            foreground: which pixels count, (N, 1, H, W), in [0, 1] or boolean.
            places: of the slices; see `PositionNorm.forward`.
            patient: whose they are.
        """
        maps, weight = maps.double().cpu(), foreground.double().cpu()
        planes, positions = (numbers.expand(len(maps)) for numbers in _planes_and_positions(places))
        parts = torch.cat([weight, weight * maps, weight * maps.square()], dim=1)
        parts = F.adaptive_avg_pool2d(parts, self.sums.shape[-1])
        bins = torch.linspace(0, 1, _POSITIONS, dtype=torch.float64)
        near = torch.exp(-0.5 * ((positions.double()[:, None] - bins) / _SIGMA_OF_POSITION).square())
        self.sums.index_add_(0, planes, near[:, :, None, None, None] * parts[:, None])
        if bool((weight > 0).any()):
            self.patients.add(patient)


class PositionNorm(nn.Module):
    """Standardise anomaly maps by normal cases at the same place; before `fit` it changes nothing.

    The buffers `mean` and `std` hold mean and deviation of normals, in the maps' own unit: (planes, positions, rows,
    columns), coarse and smooth. Positions are relative slice positions, see `Places`.

    Args:
        grid: rows and columns, those of the `PositionMoments` that it will be fitted to.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, grid: int = _GRID) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(_PLANE_NAMES), _POSITIONS, grid, grid))
        self.register_buffer("std", torch.ones(len(_PLANE_NAMES), _POSITIONS, grid, grid))

    def forward(self, maps: Tensor, places: Places | None = None) -> Tensor:
        """Standardise maps of slices.

        Args:
            maps: (N, 1, H, W).
            places: of the slices; if None each is an image of its own, as a 2D image is.

        Returns:
            (N, 1, H, W), in standard deviations of normals at the same place.
        """
        planes, positions = _planes_and_positions(places)
        place = positions * (_POSITIONS - 1)
        below = place.floor().clamp(0, _POSITIONS - 2).long()
        fraction = (place - below).view(-1, 1, 1).to(self.mean)
        planes, below = planes.to(self.mean.device), below.to(self.mean.device)
        fields = []
        for field in (self.mean, self.std):
            at_position = torch.lerp(field[planes, below], field[planes, below + 1], fraction)
            fields.append(F.interpolate(at_position[:, None], maps.shape[-2:], mode="bilinear", align_corners=False))
        return (maps - fields[0]) / fields[1]

    def log_likelihood(self, moments: PositionMoments) -> float:
        """Log-likelihood of maps, each pixel a Gaussian of its own with the mean and deviation there: in nats.

        Args:
            moments: of the maps.
        """
        weight, first, second = moments.sums.unbind(dim=2)
        mean, std = self.mean.double().cpu(), self.std.double().cpu()
        squares = second - 2 * mean * first + mean.square() * weight
        return -float((weight * std.log() + squares / (2 * std.square())).sum())

    @property
    def is_known(self) -> Tensor:
        """Whether enough normals were seen, see `set_unknown`: a boolean scalar."""
        return (self.std < UNKNOWN).all()

    def set_unknown(self) -> None:
        """Too few normals were seen: every map becomes 0."""
        self.mean.zero_()
        self.std.fill_(UNKNOWN)

    def reset(self) -> None:
        """Forget the normals; maps stay as they are."""
        self.mean.zero_()
        self.std.fill_(1.0)

    @torch.no_grad()
    def fit(self, moments: Iterable[PositionMoments], by_position: bool = True) -> None:
        """Take mean and deviation from maps of normals; a place without any gets those of all places.

        Args:
            moments: of one or more groups of patients.
            by_position: if false, all places of a plane get the same mean and deviation.

        Raises:
            ValueError: no foreground at all.
        """
        groups = list(moments)
        n_patients = len(set().union(*(group.patients for group in groups)))
        sums = torch.stack([group.sums for group in groups]).sum(dim=0)
        total = sums.sum(dim=(1, 3, 4))
        if not float(total[:, 0].sum()) > 0:
            raise ValueError("Position normalisation needs maps of normals with a foreground; got none.")
        total = torch.where(total[:, :1] > 0, total, total.sum(dim=0))  # of a plane that was not seen: of all
        anywhere = (total[:, 1:] / total[:, :1]).view(-1, 1, 2, 1, 1)
        smooth = _smooth(sums)
        weight, parts = smooth[:, :, :1], smooth[:, :, 1:]
        least = torch.finfo(weight.dtype).tiny
        here = parts / weight.clamp_min(least)
        # each position is normalised by itself, so that the nearest slices fill the gaps between them
        weight_of_here = n_patients if by_position else 0
        patients = weight_of_here * weight / weight.amax(dim=(3, 4), keepdim=True).clamp_min(least)
        first, second = (
            (patients * here + _PATIENTS_OF_ALL_PLACES * anywhere) / (patients + _PATIENTS_OF_ALL_PLACES)
        ).unbind(dim=2)
        variance = (second - first.square()).clamp_min(0)
        deviation = (anywhere[:, :, 1] - anywhere[:, :, 0].square()).clamp_min(0).sqrt()
        # a place that never changed must not turn every change into a finding
        flat = deviation <= 1e-6 * anywhere[:, :, 0].abs()  # all the same but for rounding
        smallest = torch.where(flat, 1.0, 0.1 * deviation)
        self.mean.copy_(first)
        self.std.copy_(variance.sqrt().maximum(smallest))


def blur_through_slices(maps: Tensor, places: Places | None, sigma: float) -> Tensor:
    """Mean of each map with those of neighbouring slices: what extends through several slices is no noise.

    Args:
        maps: (n, 1, H, W), of the slices of one plane of a volume.
        places: of the slices; if None each is an image of its own, and stays as it is.
        sigma: of the Gaussian weights, as a fraction of the way from the first slice to the last; 0 changes nothing.

    Returns:
        (n, 1, H, W).

    Example:
        >>> maps = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1)
        >>> blurred = blur_through_slices(maps, Places(["axial"] * 3, torch.tensor([0.0, 0.5, 1.0])), sigma=0.5)
        >>> [round(value, 3) for value in blurred.flatten().tolist()]
        [0.348, 0.452, 0.348]
    """
    if places is None or sigma == 0:
        return maps
    positions = torch.as_tensor(places.positions).float()
    weights = torch.exp(-0.5 * ((positions[:, None] - positions) / sigma).square())
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(maps)
    return torch.einsum("ij,jchw->ichw", weights, maps)


def _planes_and_positions(places: Places | None) -> tuple[Tensor, Tensor]:
    """Number of the plane and relative position of each slice, (N,) and (N,); of lone images one for all."""
    if places is None:  # of one for all, so that a traced network takes batches of any size
        return torch.zeros(1, dtype=torch.long), torch.full((1,), 0.5)
    planes = torch.tensor([_PLANE_NAMES.index(plane) for plane in places.planes], dtype=torch.long)
    return planes, torch.as_tensor(places.positions).float().cpu().clamp(0, 1)


def _smooth(sums: Tensor) -> Tensor:
    """Blur sums (planes, positions, 3, rows, columns) in the plane; nothing comes in over the borders."""
    grid = sums.shape[-1]
    sigma = _SIGMA_IN_PLANE * grid
    distance = torch.arange(grid, dtype=sums.dtype)
    kernel = torch.exp(-0.5 * ((distance[:, None] - distance) / sigma).square())
    return torch.einsum("pqrst,as,bt->pqrab", sums, kernel, kernel)
